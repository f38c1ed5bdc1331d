"""Captions get what the library's own pipeline, with Stanford's tokenizer, gives them."""

import sys
from dataclasses import replace

import pytest

from beni.errors import ConfigError, DataError
from beni.eval import figure
from beni.eval.captions import BEST, bleu4, cider, references, words
from beni.eval.metrics import check, score
from beni.eval.prediction import Prediction, summary
from beni.report.page import score_rows
from beni.sample import Sample, Turn

OFFICIAL = [
    ("A man (left) with [x] and \"z\" says 'hi'", "a man -lrb- left -rrb- with -lsb- x -rsb- and z says hi"),
    ("Mr. and Mrs. Smith, Dr. Who, St. Louis vs. N.Y.", "mr. and mrs. smith dr. who st. louis vs. n.y."),
    ("the dog's ball, the dogs' ball, don't can't won't", "the dog 's ball the dogs ball do n't ca n't wo n't"),
    ("a man 's hat, they do n't", "a man 's hat they do n't"),
    ("I'm they've we'd she'll o'clock rock 'n' roll", "i 'm they 've we 'd she 'll o'clock rock 'n' roll"),
    ("cannot gonna wanna", "can not gon na wan na"),
    ("a black-and-white T-shirt -- left - right… and ... more..", "a black-and-white t-shirt left right and more"),
    ("a sign reads “STOP” and ‘slow’, it’s", "a sign reads stop and slow it 's"),
    ("3.5 x 1,000 50% $5 #1 a/b 10:30 1/2 R&B M&M's", "3.5 x 1,000 50 % $ 5 # 1 a/b 10:30 1/2 r&b m&m 's"),
    ("the girl,boy.dog end. Really?\nyes; no!", "the girl boy.dog end really yes no"),
    ("a grey café, 100 ft. tall", "a grey café 100 ft. tall"),
    ("", ""),
]
"""What PTBTokenizer of pycocoevalcap 1.2 makes of captions."""

PEOPLE = {
    "dog": ("A brown dog runs across the grass.", "The dog's running in a field of green grass", "A dog plays outside"),
    "man": ("A man in a black-and-white T-shirt rides a bicycle.", "a man rides his bike down the street"),
    "cat": ("Two cats sleep on a couch.", "Two cats are lying on a red couch, asleep.", "cats on the couch"),
    "sign": ('A red sign reads "STOP" on the corner of a street.', "a stop sign (red) at a street corner"),
}
SAID = {
    "dog": "A brown dog is running in the grass.",
    "man": "a man rides a bike on the street",
    "cat": "a dog sits on the couch",
    "sign": "a red stop sign on the corner of a street",
}
CIDER = {"dog": 1.7221451309307678, "man": 2.6644350873281795, "cat": 1.4420353854404246, "sign": 4.035027813379664}
BLEU4 = 0.3904534369915815
"""Of these, by PTBTokenizer, Cider and Bleu of pycocoevalcap 1.2."""


def captioned(name: str, *texts: str) -> Sample:
    turns = (Turn("user", ("describe it",)), Turn("assistant", (texts[0],)))
    return Sample(name, turns, answers=texts if len(texts) > 1 else (), metric="caption")


SAMPLES = [captioned(name, *texts) for name, texts in PEOPLE.items()]


def predicted(texts: list[str]) -> list[Prediction]:
    gets = score(texts, SAMPLES)
    return [
        Prediction(s.id, text, s.answer, each, {"long": str(len(s.answers) > 2)}, "", s.id, "caption", s.answers)
        for s, text, each in zip(SAMPLES, texts, gets, strict=True)
    ]


@pytest.mark.parametrize(("caption", "cut"), OFFICIAL)
def test_words_are_those_of_the_official_tokenizer(caption: str, cut: str) -> None:
    assert " ".join(words(caption)) == cut


def test_figures_are_those_of_the_whole_library() -> None:
    said = list(SAID.values())
    assert dict(zip(SAID, score(said, SAMPLES), strict=True)) == pytest.approx(CIDER, abs=1e-9)
    told = summary(predicted(said))
    assert told["cider"] == pytest.approx(sum(CIDER.values()) / 4) and told["bleu4"] == pytest.approx(BLEU4, abs=1e-9)
    assert told["cider_interval"][0] < told["cider"] < told["cider_interval"][1]
    assert told["accuracy"] is None and told["interval"] is None and told["items"] == 4
    assert "cider" not in summary([Prediction("a", "x", "x", 1.0)])


def test_the_order_of_items_does_not_matter() -> None:
    assert score(list(SAID.values())[::-1], SAMPLES[::-1])[::-1] == pytest.approx(list(CIDER.values()))


def test_what_all_people_said_gets_everything_and_nothing_gets_nothing() -> None:
    samples = [captioned(name, texts[1]) for name, texts in PEOPLE.items()]
    best, none = [sample.answer.upper() for sample in samples], [""] * 4
    assert cider(best, samples) == pytest.approx([BEST] * 4) and cider(none, samples) == [0] * 4
    wanted = [references(sample.answer, sample.answers) for sample in samples]
    assert bleu4(best, wanted) == pytest.approx(1) and bleu4(none, wanted) == 0
    others = best[1:] + best[:1]
    assert max(cider(others, samples)) < 0.5


def test_a_caption_is_neither_right_nor_wrong() -> None:
    lines = [each.line() for each in predicted(list(SAID.values()))]
    assert all(line["correct"] is None and line["metric"] == "caption" and line["answers"] for line in lines)


def test_captions_and_answers_have_figures_of_their_own() -> None:
    captions, answers = predicted(list(SAID.values())), [Prediction("a", "", "", 1.0), Prediction("b", "", "", 0.0)]
    told = summary([*captions, *answers])
    assert told["accuracy"] == 0.5 and told["items"] == 6
    assert (told["accuracy_items"], told["cider_items"]) == (2, 4) and "cider_items" not in summary(captions)
    rows = [(row.figure, row.items, row.value) for row in score_rows({"x": told}) if not row.tag]
    assert rows == [(figure.ACCURACY, 2, 0.5), (figure.CIDER, 4, told["cider"])]
    assert (told["cider"], told["bleu4"]) == (summary(captions)["cider"], summary(captions)["bleu4"])
    assert set(summary(captions)["by_tag"]) == {"long=True", "long=False"}


def test_the_answer_is_a_reference_and_counts_once() -> None:
    assert references("a", ()) == ("a",)
    assert references("a", ("b", "c")) == ("a", "b", "c")
    assert references("a", ("b", " a\n", "b")) == ("b", " a\n", "b")


def test_what_cannot_be_judged_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check(SAMPLES)
    with pytest.raises(DataError, match=r"'dog' would be judged alone.*two items"):
        check([SAMPLES[0], replace(SAMPLES[1], metric="exact")])
    with pytest.raises(DataError, match=r"'dots'.*have none"):
        check([*SAMPLES, captioned("dots", "...", "!")])
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[captions\]'"):
        check(SAMPLES)
