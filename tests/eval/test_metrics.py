"""Metrics give the credit that the references give."""

import pytest

from beni.errors import DataError
from beni.eval.metrics import check, normalised, score
from beni.sample import Metric, Sample, Turn

OFFICIAL = [
    ("The red ball.", "red ball"),
    ("two", "2"),
    ("none", "0"),
    ("10.", "10"),
    ("a T.V.", "tv"),
    ("3.5", "3.5"),
    ("no. 3", "no 3"),
    ("1,000", "1000"),
    ("1,000, or so", "1000 or so"),
    ("well-known, really", "well known really"),
    ("x-ray", "x ray"),
    ("red/blue", "red blue"),
    ("red / blue", "red blue"),
    ("(left)", "left"),
    ("yes!", "yes"),
    ("\nAn apple\t pie ", "apple pie"),
    ("dont", "don't"),
    ("Its", "its"),
    ("couldnt've", "couldn't've"),
    ("couldntve", "couldntve"),
    ("itd've", "it'd've"),
    ("'ow'sat", "'ow's'at"),
    ("somebody'd", "somebodyd"),
]
"""What processPunctuation and processDigitArticle of GT-Vision-Lab/VQA, vqaEval.py, make of texts."""


def item(metric: Metric, answer: str, answers: tuple[str, ...] = (), choices: tuple[str, ...] = ()) -> Sample:
    turns = (Turn("user", ("?",)), Turn("assistant", (answer,)))
    return Sample("7", turns, answers=answers, choices=choices, metric=metric)


@pytest.mark.parametrize(("text", "normal"), OFFICIAL)
def test_answers_are_put_into_the_official_form(text: str, normal: str) -> None:
    assert normalised(text) == normal
    assert normalised(normalised(text)) == normal or text == "somebody'd"


@pytest.mark.parametrize(
    ("agreeing", "credit"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)  # the published values for ten people
def test_vqa_accuracy(agreeing: int, credit: float) -> None:
    answers = ("The cat.",) * agreeing + tuple(f"dog {n}" for n in range(10 - agreeing))
    assert score(["a cat"], [item("vqa", answers[0], answers)]) == pytest.approx([credit])


def test_exact_is_exact() -> None:
    assert score(["red", " RED. ", "a red", ""], [item("exact", "Red.")] * 4) == [1, 1, 0, 0]
    assert score(["2"], [item("exact", "two")]) == [0]
    assert score(["US", "us"], [item("choice", "US", choices=("us", "US"))] * 2) == [1, 0]


def test_each_is_judged_by_its_own_metric() -> None:
    people = ("a cat",) * 4
    items = [item("exact", "a cat"), item("vqa", "a cat", people), item("exact", "cat"), item("vqa", "a cat", people)]
    assert score(["cat", "cat", "cat", "dog"], items) == [0, 1, 1, 0]
    assert score(["a cat", "cats", "cat", "the cat"], items) == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (item("vqa", "cat"), "several people answered.*0 answers.*metric=exact"),
        (item("vqa", "cat", ("cat",) * 3), "3 answers"),
        (item("choice", "cat"), "'cat' is none of them: it has none"),
        (item("choice", "cat", choices=("cat", "")), "one of its choices is empty"),
        (item("choice", "cat", choices=("dog", "Cat")), "'cat' is none of them: dog, Cat"),
    ],
)
def test_items_that_cannot_be_judged_so_are_named(wrong: Sample, said: str) -> None:
    with pytest.raises(DataError, match=f"sample '7': .*{said}"):
        check([item("exact", "fine"), wrong])
