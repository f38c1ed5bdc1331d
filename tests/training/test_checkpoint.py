"""Which checkpoints stay, and which weights are judged and saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from beni.errors import ConfigError
from beni.training import callbacks
from beni.training.run import train
from tests.training.small import small_run, text_file

LOSSES = (0.9, 0.4, 0.7, 0.5, 0.8, 0.6)
"""On the validation split, behind each of six steps."""


def run(out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """Six steps, each validated and saved."""
    losses = iter(LOSSES)
    monkeypatch.setattr(callbacks, "held_out_loss", lambda *_: next(losses))
    changes = {"out": str(out), "eval_every": 1, "checkpoint_every": 1, **options}
    return train(small_run(out, optim={"steps": 6}, run=changes))


def kept(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))


def test_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for keep in (1, 3):
        run(tmp_path / str(keep), monkeypatch, keep=keep)
        assert kept(tmp_path / str(keep)) == list(range(7 - keep, 7))


def test_the_best_stays_and_is_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {select: run(tmp_path / select, monkeypatch, select=select) for select in ("last", "best")}
    assert {name: result["selected_step"] for name, result in results.items()} == {"last": 6, "best": 2}
    assert results["best"]["steps"] == 6
    assert kept(tmp_path / "last") == [5, 6] and kept(tmp_path / "best") == [2, 5, 6]
    saved = load_file(tmp_path / "best/model/model.safetensors")
    dcp_to_torch_save(tmp_path / "best/checkpoints/step-00000002", tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt", weights_only=True)["model"]
    assert saved and all(torch.equal(tensor, two[name]) for name, tensor in saved.items())


def test_the_best_so_far_is_remembered_by_a_continued_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", monkeypatch, select="best", keep=6)
    (tmp_path / "run/checkpoints/latest").write_text("step-00000003")
    monkeypatch.setattr(callbacks, "held_out_loss", lambda *_: 0.45)  # better than the third, not than the second
    changes = {"eval_every": 1, "select": "best", "keep": 6, "resume": "auto", "checkpoint_every": 1}
    result = train(small_run(tmp_path / "run", optim={"steps": 6}, run={"out": str(tmp_path / "run"), **changes}))
    assert result["selected_step"] == 2


def test_a_best_from_the_future_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", monkeypatch, select="best", keep=6)
    first = tmp_path / "run/checkpoints/step-00000001"
    monkeypatch.setattr(callbacks, "held_out_loss", lambda *_: 0.6)
    changes = {"eval_every": 3, "select": "best", "keep": 6, "resume": str(first), "checkpoint_every": 1}
    result = train(small_run(tmp_path / "run", optim={"steps": 6}, run={"out": str(tmp_path / "run"), **changes}))
    assert result["selected_step"] == 3


def test_the_best_needs_a_validation_split(tmp_path: Path) -> None:
    data = {"data": [text_file(tmp_path)], "eval_data": ["shapes?images=10"]}
    with pytest.raises(ConfigError, match="--select best compares losses on a validation split"):
        train(small_run(tmp_path / "run", data=data, run={"select": "best"}))


def test_the_state_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", monkeypatch, select="best")
    state = json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())
    assert state["val_loss"] == 0.4 and state["position"]["steps"] == 2
