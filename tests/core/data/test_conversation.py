"""What files call a conversation, as turns; every source that reads files of others has more of it in its own tests."""

from typing import Any

import pytest

from beni.data.conversation import check_answers, exchange, show, turns_of, usual, words
from beni.errors import DataError
from beni.sample import Turn

SPELLINGS: list[list[Any]] = [
    [{"from": "human", "value": "<image>a?"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c<image>"}],
    [{"user": "<image>a?", "assistant": "b"}, {"role": "user", "content": "c<image>"}],
    [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a?"}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "image"}]},
    ],
]


@pytest.mark.parametrize("talk", SPELLINGS)
def test_however_it_is_written_it_is_the_same(talk: list[Any]) -> None:
    turns = turns_of(talk, "here")
    assert turns == [Turn("user", (0, "a?")), Turn("assistant", ("b",)), Turn("user", ("c", 1))]
    assert show(turns, 2, "here") == tuple(turns)
    with pytest.raises(DataError, match=r"^here: ends without an answer .its last turn is of the user"):
        check_answers(turns, "here")


def test_images_without_marks_stand_in_front_of_the_first_question() -> None:
    turns = [Turn("system", ("be brief",)), *exchange("a?", "b"), *exchange("c?", "d")]
    shown = show(turns, 2, "here")
    assert [turn.content for turn in shown[:2]] == [("be brief",), (0, 1, "\n", "a?")] and shown[2:] == tuple(turns[2:])
    assert show(exchange("", "b"), 2, "here")[0].content == (0, 1)


def test_marks_and_images_are_as_many() -> None:
    with pytest.raises(DataError, match=r"^here: has 1 <image> mark but 2 images$"):
        show(exchange("a <image>?", "b"), 2, "here")
    with pytest.raises(DataError, match=r"^here: has images but no turn of the user to show them in$"):
        show([Turn("assistant", ("b",))], 1, "here")
    with pytest.raises(DataError, match=r"^here: turn 0 is an answer with an <image> mark"):
        check_answers([Turn("assistant", ("b", 0))], "here")
    check_answers(exchange("a <image>?", "an <image> that is spelled out"), "here")


def test_words_are_texts_and_numbers() -> None:
    assert [words(value, "answer", "here") for value in ("a", 3, 0.5, ["a", "b"])] == ["a", "3", "0.5", "a"]
    for value in ({}, None, [], [None]):
        with pytest.raises(DataError, match=r"^here: the answer is .*, not a text or a number$"):
            words(value, "answer", "here")


def test_usual_names_have_an_order() -> None:
    assert usual("answer", {"caption": 1, "answer": 2}) == "answer" and usual("talk", ["image"]) == ""
