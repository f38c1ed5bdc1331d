"""Answers are judged by the metric of their item: generated, or the likeliest of choices."""

import json
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from beni.config import RunOptions
from beni.data.batch import Pictures
from beni.data.images import mean_colour
from beni.errors import DataError
from beni.eval import choice
from beni.eval.choice import Offered, log_likelihoods, offered, rows
from beni.eval.judge import judge
from beni.eval.prediction import Prediction, summary
from beni.model.build import Built
from beni.processes import processes
from beni.sample import ImageRef, Sample, Turn
from beni.testing.launch import run_ranks
from beni.training.parallel import parallelize
from tests.model.small import FUSIONS, SIZE, inputs, make, noise, talk

WORDS = ("red", "red ball", "no", "a very long answer of many words")
ITEMS = (
    talk("one", (0, "what is it?"), ("red",), images=(noise(0),)),
    talk("again", (0, "which?"), ("no",), images=(noise(0),)),
    talk("two", ("compare ", 0, " and ", 1), ("red ball",), images=(noise(1), noise(2))),
    talk("text", ("hello there",), ("no",)),
    talk("turns", (0, "what?"), ("red",), ("sure?",), ("no",), images=(noise(3),)),
)
CHOICES = tuple(replace(sample, choices=WORDS[:3], metric="choice") for sample in ITEMS)


def made(parts: str = "inline", **tables: Any) -> Built:
    torch.manual_seed(0)
    built = make(parts, **tables)
    built.model.eval()
    return built


def apart(built: Built, sample: Sample) -> float:
    """Log probability of a sample's last answer by an ordinary forward pass over its tokens."""
    document, start = built.composer.compose(sample), len(built.composer.compose(sample, prompt_only=True))
    with torch.no_grad():
        logits = built.model(**inputs(built, (sample,), prompt_only=False)).logits[0]
    log_p = logits.double().log_softmax(-1)
    return sum(float(log_p[at - 1, document.ids[at]]) for at in range(start, len(document)))


def answering(sample: Sample, word: str) -> Sample:
    return replace(sample, turns=(*sample.turns[:-1], Turn("assistant", (word,))))


def loaded(built: Built, items: Sequence[Offered]) -> Pictures:
    pictures = Pictures(built.composer)
    for image in (image for documents in items for document in documents for image in document.images):
        pictures.load(image)
    return pictures


@pytest.mark.parametrize("parts", FUSIONS)
def test_choices_in_one_row_are_as_likely_as_each_by_itself(parts: str) -> None:
    built = made(parts)
    items = [offered(replace(sample, choices=WORDS), built.composer) for sample in ITEMS]
    found = log_likelihoods(built.model, built.composer, items, loaded(built, items))
    for sample, own in zip(ITEMS, found, strict=True):
        wanted = [apart(built, answering(sample, word)) for word in WORDS]
        assert len({round(value, 3) for value in wanted}) == len(WORDS)
        difference = [a - b for a, b in zip(own, wanted, strict=True)]
        earlier = sample.id == "turns"  # an earlier answer counts in all of them alike
        assert difference == pytest.approx([difference[0] if earlier else 0.0] * len(WORDS), abs=1e-4)


def test_the_likeliest_choice_is_the_answer() -> None:
    built = made()
    with processes(RunOptions(device="cpu")) as procs:
        found = judge(built.model, built.composer, CHOICES, procs)
    for sample, prediction in zip(CHOICES, found, strict=True):
        likely = {word: apart(built, answering(sample, word)) for word in sample.choices}
        assert prediction.prediction == max(likely, key=lambda word: likely[word])
        assert prediction.score == (prediction.prediction == sample.answer)
    assert {prediction.score for prediction in found} == {0.0, 1.0}, "a poor example"


def test_rows_hold_every_item_once_and_are_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    built = made()
    items = {n: offered(sample, built.composer) for n, sample in enumerate(CHOICES)}
    assert [list(row) for row in rows(items)] == [[0, 1, 2, 3, 4]]
    longest = max(sum(len(document) for document in documents) for documents in items.values())
    monkeypatch.setattr(choice, "ROW", longest)
    found = list(rows(items))
    assert [number for row in found for number in row] == list(items) and len(found) > 1
    assert all(sum(len(d) for documents in row.values() for d in documents) <= longest for row in found)


CAPTIONS = tuple(replace(sample, answers=("a red ball", "no ball"), metric="caption") for sample in ITEMS[:3])


def mixed() -> tuple[Sample, ...]:
    """Items of every metric, some of which show an image that cannot be read."""
    people = ("red",) * 5 + ("blue",) * 5
    broken = replace(ITEMS[0], images=(ImageRef(path="nowhere.png", size=SIZE),))
    asked = (*ITEMS, broken, *(replace(sample, answers=people, metric="vqa") for sample in ITEMS[:2]))
    return (*asked, *CHOICES, *CAPTIONS, replace(broken, choices=WORDS[:3], metric="choice"))


def _judged(folder: str) -> None:
    torch.manual_seed(0)
    built = made("xattn")
    with processes(RunOptions(device="cpu")) as procs:
        parallelize(built.model, procs)
        found = judge(built.model, built.composer, mixed(), procs, batch_size=2, max_new_tokens=4)
        if procs.is_main:
            lines = [json.dumps(prediction.line()) for prediction in found]
            (Path(folder) / str(procs.world)).write_text("\n".join(lines))


def test_two_processes_answer_as_one_and_what_cannot_be_read_is_wrong(tmp_path: Path) -> None:
    for ranks in (1, 2):
        run_ranks(_judged, ranks, str(tmp_path))
    one, two = ((tmp_path / ranks).read_text() for ranks in ("1", "2"))
    assert one == two
    found = [json.loads(line) for line in one.splitlines()]
    assert len(found) == len(mixed())
    assert [n for n, line in enumerate(found) if line["error"]] == [5, len(found) - 1]
    assert all(line["score"] == 0 and "nowhere.png" in line["error"] for line in found if line["error"])


@pytest.mark.parametrize("parts", FUSIONS)
def test_blind_is_every_image_blanked_and_encoded_once_for_each_size(parts: str) -> None:
    built, samples = made(parts), [sample for sample in ITEMS if sample.images]
    grey = Image.new("RGB", SIZE, mean_colour(next(iter(built.composer.encoders.values()))))
    file = BytesIO()
    grey.save(file, "png")
    blank = ImageRef(data=file.getvalue(), size=SIZE)
    blanks = [replace(sample, images=(blank,) * len(sample.images)) for sample in samples]
    with processes(RunOptions(device="cpu")) as procs:
        found = judge(built.model, built.composer, samples, procs, max_new_tokens=4, blind=True)
        wanted = [judge(built.model, built.composer, [each], procs, max_new_tokens=4)[0] for each in blanks]
        sighted = judge(built.model, built.composer, samples, procs, max_new_tokens=4)
    assert [p.prediction for p in found] == [p.prediction for p in wanted]
    assert [p.images for p in found] == [p.images for p in sighted], "items are known by what they show"


def test_without_images_an_encoder_sees_one_for_each_size() -> None:
    built = made()
    samples = [talk(str(n), (0, "what?"), ("x",), images=(noise(n),)) for n in range(5)]
    crops: list[int] = []
    built.model.encoders["main"].register_forward_pre_hook(lambda _, inputs: crops.append(len(inputs[0])))
    with processes(RunOptions(device="cpu")) as procs:
        for blind in (False, True):
            judge(built.model, built.composer, samples, procs, max_new_tokens=1, blind=blind)
    assert crops == [5, 1]


def test_items_without_a_metric_of_theirs_are_refused_before_anything_is_answered() -> None:
    built = made()
    with processes(RunOptions(device="cpu")) as procs, pytest.raises(DataError, match=r"'one'.*none of them"):
        judge(built.model, built.composer, [replace(ITEMS[0], metric="choice", choices=("blue",))], procs)


def test_accuracy_is_the_mean_credit_with_its_interval_and_by_tag() -> None:
    found = [
        Prediction(str(n), "", "", score, {"type": kind}, images=str(n // 2))
        for n, (score, kind) in enumerate([(1.0, "a"), (0.3, "a"), (0.6, "b"), (0.9, "b")])
    ]
    told = summary(found)
    assert told["accuracy"] == pytest.approx(0.7) and told["items"] == 4
    assert told["interval"][0] < 0.7 < told["interval"][1]
    assert {tag: each["accuracy"] for tag, each in told["by_tag"].items()} == pytest.approx(
        {"type=a": 0.65, "type=b": 0.75}
    )
    assert summary([])["accuracy"] is None


def test_items_about_the_same_image_are_told_and_no_others() -> None:
    built = made()
    with processes(RunOptions(device="cpu")) as procs:
        one, again, two, text, turns = (p.images for p in judge(built.model, built.composer, CHOICES, procs))
    assert one == again and len({one, two, text, turns}) == 4
