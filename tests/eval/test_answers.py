"""Answers to items survive the file, and know which items share images."""

import json
from pathlib import Path

import pytest

from beni.eval.answers import answers, read_answers, write_answers
from beni.eval.prediction import Prediction
from beni.sample import ImageRef, Sample, Turn, vqa_sample

ITEMS = {
    "a": [
        vqa_sample("0", ImageRef(path="x.png"), "is it é?", "yes", {"type": "letters"}),
        vqa_sample("1", ImageRef(path="x.png"), "is it red?", "no"),
    ],
    "b": [
        vqa_sample("0", ImageRef(data=b"..."), "?", "2"),
        Sample("1", (Turn.user("say 1"), Turn("assistant", ("1",)))),
        Sample("2", (Turn.user("say 2"), Turn("assistant", ("2",))), answers=("2", "two")),
    ],
}
SAMPLES = [sample for samples in ITEMS.values() for sample in samples]


def predictions(*texts: str) -> list[Prediction]:
    return [
        Prediction(sample.id, text, sample.answer, float(text == sample.answer), sample.tags, answers=sample.answers)
        for sample, text in zip(SAMPLES, texts, strict=True)
    ]


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = list(answers(ITEMS, predictions("yes", "yes", "2", "ü", "2"), predictions("no", "no", "2", "1", "")))
    write_answers(tmp_path / "predictions.jsonl", iter(found))
    assert read_answers(tmp_path / "predictions.jsonl") == found
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert [(each.data, each.id) for each in found] == [("a", "0"), ("a", "1"), ("b", "0"), ("b", "1"), ("b", "2")]
    assert [each.score for each in found] == [1, 0, 1, 0, 1]
    assert [each.blind_score for each in found] == [0, 1, 1, 1, 0]
    assert found[0].tags == {"type": "letters"} and found[3].prediction == "ü"
    assert found[3].answers == () and found[4].answers == ("2", "two")


def test_files_of_before_have_no_references(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    write_answers(file, answers(ITEMS, predictions("", "", "", "", ""), predictions("", "", "", "", "")))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "answers"}) + "\n" for line in lines))
    assert [each.answers for each in read_answers(file)] == [()] * 5


def test_as_many_as_items() -> None:
    nothing = predictions("", "", "", "", "")
    with pytest.raises(ValueError, match="zip"):
        list(answers(ITEMS, nothing[:-1], nothing))
