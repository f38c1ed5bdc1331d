"""Figures of the validation split."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from beni.config import BatchConfig
from beni.data.spec import parse
from beni.eval.held_out import HeldOut
from beni.eval.saved import load_saved
from beni.sample import Sample, Turn
from beni.training.run import train
from tests.core.data.tiny import composer, llama_like
from tests.training.small import SHAPES, small_run


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} bottles of béer on the wall\n" for n in range(60)))
    return f"text:{path}?characters=100&validation=0.2"


def test_nats_per_character_are_those_of_every_character_once(text: str, tmp_path: Path) -> None:
    result = train(small_run(tmp_path / "run", data={"data": [text]}))
    model, saved = load_saved(str(tmp_path / "run" / "model"), torch.device("cpu"))
    nats, characters = 0.0, 0
    for sample in parse(text).samples("val") or []:
        [whole] = sample.turns[0].content
        ids = saved.template.tokenizer(whole, return_tensors="pt")["input_ids"]
        assert ids[0, 0] == saved.template.tokenizer.bos_token_id
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        nats += F.cross_entropy(logits[:-1].float(), ids[0, 1:], reduction="sum").item()
        characters += len(str(whole))
    whole_file = Path(text.removeprefix("text:").partition("?")[0]).read_text()
    assert characters == len(whole_file) - round(0.8 * len(whole_file))
    assert result["val_nats_per_char"] == pytest.approx(nats / characters, rel=1e-5)
    assert result["eval_loss"] is None, "there is nothing to answer"


def test_a_run_that_was_judged_again_still_has_them(text: str, tmp_path: Path) -> None:
    first = train(small_run(tmp_path / "run", data={"data": [text]}))
    again = train(small_run(tmp_path / "run", data={"data": [text]}, run={"resume": "auto"}))
    assert {name: value for name, value in first.items() if name.startswith("val_")} == {
        name: value for name, value in again.items() if name.startswith("val_")
    }
    assert first["val_loss"] == json.loads((tmp_path / "run/result.json").read_text())["val_loss"]


def test_only_plain_text_is_counted_in_characters(text: str, tmp_path: Path) -> None:
    result = train(small_run(tmp_path / "run", data={"data": [text, SHAPES]}))
    assert "val_loss" in result and "val_nats_per_char" not in result


def test_texts_that_do_not_fit_are_counted_and_make_the_figure_none(text: str, tmp_path: Path) -> None:
    path = Path(text.removeprefix("text:").partition("?")[0])
    long = tmp_path / "long.jsonl"
    long.write_text('{"text": "short"}\n' * 6 + '{"text": "' + "x" * 600 + '"}\n{"text": "short"}\n')
    result = train(small_run(tmp_path / "run", data={"data": [f"text:{path}", f"text:{long}?validation=0.25"]}))
    assert result["val_unusable"] == 1 and "val_nats_per_char" not in result


def test_without_bos_the_first_token_is_not_counted() -> None:
    """One byte is one token of this tokenizer, and é is two."""
    texts = [Sample(str(n), (Turn("text", (said,)),)) for n, said in enumerate(["abcdé", "xyz"])]
    held_out = HeldOut.of([texts], composer(llama_like()), BatchConfig())
    assert (held_out.targets, held_out.characters) == (5 + 2, 4 + 2)
