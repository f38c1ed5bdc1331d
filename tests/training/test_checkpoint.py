"""Which checkpoints stay, and which weights are judged and saved."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from beni.config import RunConfig
from beni.errors import CheckpointError, ConfigError, Stopped
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
    changes = {"eval_every": 3, "select": "best", "resume": str(first), "checkpoint_every": 1}
    result = train(small_run(tmp_path / "run", optim={"steps": 6}, run={"out": str(tmp_path / "run"), **changes}))
    assert result["selected_step"] == 3 and kept(tmp_path / "run") == [3, 5, 6]


def test_the_future_is_deleted_and_never_what_was_just_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", monkeypatch, keep=6)
    second = tmp_path / "run/checkpoints/step-00000002"
    changes = {"out": str(tmp_path / "run"), "resume": str(second), "checkpoint_every": 1, "eval_every": 100}
    with pytest.raises(Stopped):
        _stop_in(3, monkeypatch, small_run(tmp_path / "run", optim={"steps": 6}, run=changes))
    assert kept(tmp_path / "run") == [2, 3]
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000003"


def _stop_in(step: int, monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> None:
    """Train; SIGTERM comes while a step is validated, logged and saved."""
    original = callbacks.Callbacks.after_step

    def after_step(self: callbacks.Callbacks, report: Any) -> None:
        if report.position.steps == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, report)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Callbacks, "after_step", after_step)
        train(config)


@pytest.mark.parametrize("step", [2, 6])
def test_sigterm_while_the_best_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """In the last step, too: what is left, judging, is for the continuation."""
    losses = iter((0.9, 0.4, 0.7, 0.5, 0.8, 0.3))
    monkeypatch.setattr(callbacks, "held_out_loss", lambda *_: next(losses))
    changes = {"out": str(tmp_path), "eval_every": 1, "checkpoint_every": 1, "select": "best"}
    with pytest.raises(Stopped, match=f"behind step {step} of 6"):
        _stop_in(step, monkeypatch, small_run(tmp_path, optim={"steps": 6}, run=changes))
    result = train(small_run(tmp_path, optim={"steps": 6}, run={**changes, "resume": "auto"}))
    assert result["steps"] == 6 and result["selected_step"] == 6
    assert (tmp_path / "checkpoints/best").read_text() == "step-00000006 0.3"


def test_the_best_needs_a_validation_split(tmp_path: Path) -> None:
    data = {"data": [text_file(tmp_path)], "eval_data": ["shapes?images=10"]}
    with pytest.raises(ConfigError, match="--select best compares losses on a validation split"):
        train(small_run(tmp_path / "run", data=data, run={"select": "best"}))
    assert not (tmp_path / "run").exists(), "the corrected command would be refused"


def test_a_checkpoint_of_an_earlier_version_is_told_as_such(tmp_path: Path) -> None:
    train(small_run(tmp_path / "run", run={"checkpoint_every": 2}))
    state = tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json"
    held = json.loads(state.read_text())
    state.write_text(json.dumps(held | {"facts": held["facts"]["required"]}))
    with pytest.raises(CheckpointError, match="written by an earlier version of beni"):
        train(small_run(tmp_path / "run", run={"checkpoint_every": 2, "resume": "auto"}))
