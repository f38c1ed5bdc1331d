"""A conversation has the tokens that training would have made of it."""

import pytest

from beni.chat.conversation import Conversation
from beni.data.document import IGNORE
from beni.errors import DataError
from beni.sample import Turn
from tests.model.small import A, B, C, make, talk

LONG = (
    ((0, "\nwhat is it?"), "a cat"),
    (("hello there",), "general kenobi"),
    (("compare ", 1, " with ", 2), "three cats"),
    (("how many?",), "all the same"),
)


@pytest.mark.parametrize("template", ["", "plain", "vicuna", "llama_2", "chatml"])
@pytest.mark.parametrize("turns", range(1, len(LONG) + 1))
def test_prompts_are_what_training_had_in_front_of_the_answer(turns: int, template: str) -> None:
    composer = make("inline", data={"template": template}).composer
    spoken = [part for asked, said in LONG[:turns] for part in (asked, (said,))]
    images = (A, B, C)[: sum(isinstance(part, int) for turn in spoken for part in turn)]
    trained = composer.compose(talk("trained", *spoken, images=images))
    said = Conversation().ask("what is it?", [A]).answer("a cat")
    for asked, shown, answer in [
        ("hello there", [], "general kenobi\n"),
        ("compare <image> with <image>", [B, C], " three cats"),
        ("how many?", [], "all the same"),
    ][: turns - 1]:
        said = said.ask(asked, shown).answer(answer)
    asked_again = Conversation(said.turns[:-1], said.images)
    prompt = composer.compose(asked_again.sample(), prompt_only=True)
    assert prompt.ids.tolist() == trained.ids[: len(prompt)].tolist()
    assert trained.labels[len(prompt)] != IGNORE and (trained.labels[len(prompt) :] != IGNORE).all()
    assert [image.at for image in prompt.images] == [image.at for image in trained.images]


def test_an_empty_answer_stays_a_turn() -> None:
    composer = make("inline").composer
    said = Conversation().ask("hello there").answer("").ask("how many?")
    prompt = composer.compose(said.sample(), prompt_only=True)
    stop = min(composer.template.stop_ids)
    assert prompt.ids.tolist().count(stop) == 1, "the end of the first answer"


def test_marks_place_pictures() -> None:
    said = Conversation().ask("see", [A, B]).answer("yes").ask("a <image>b", [C])
    assert said.turns[0].content == (0, 1, "\nsee") and said.turns[2].content == ("a ", 2, "b")
    assert said.images == (A, B, C)
    assert Conversation().ask("", [A]).turns == (Turn("user", (0, "\n")),)


@pytest.mark.parametrize(
    "text, images, message",
    [
        (" ", [], "there is no question"),
        ("<image> and <image>", [A], "has 2 <image> marks but 1 picture"),
        ("<image>", [], "has 1 <image> mark but 0 pictures"),
    ],
)
def test_questions_that_are_none(text: str, images: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Conversation().ask(text, images)


def test_a_question_without_an_answer_is_replaced() -> None:
    said = Conversation().ask("see", [A]).answer("yes").ask("and these?", [B, C])
    again = said.ask("how many?", [C])
    assert again.images == (A, C) and len(again.turns) == 3
    assert again.turns[2].content == (1, "\nhow many?")
