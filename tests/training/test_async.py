"""Checkpoints that are written while training goes on."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from beni.errors import NotWritten, Stopped
from beni.testing.launch import run_ranks
from beni.training.callbacks import Callbacks
from beni.training.run import train
from beni.training.saving import Saver
from tests.training.small import small_run
from tests.training.test_checkpoint import FULL, FullDisk, hidden, kept

LONG = 60.0
"""Seconds after which something that should have happened has not."""


def run(out: Path, background: bool, **options: Any) -> dict[str, Any]:
    changes = {"out": str(out), "checkpoint_every": 2, "keep": 9, "eval_every": 100, **options}
    return train(small_run(out, optim={"steps": 6}, run=changes | {"async_checkpoints": background}))


def tensors(out: Path, step: int) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}/{key}")
        else:
            flat[name] = value

    dcp_to_torch_save(out / f"checkpoints/step-{step:08d}", out / "whole.pt")
    walk(torch.load(out / "whole.pt", weights_only=True), "")
    return flat


def assert_same(one: Path, two: Path, step: int) -> None:
    """The checkpoints of a step hold the same bits."""
    first, second = tensors(one, step), tensors(two, step)
    assert first.keys() == second.keys() and len(first) > 20
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name], name


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Each checkpoint is written only after one more step was taken; yields what `latest` named just before."""
    stepped = threading.Event()
    named: list[str] = []
    write, after_step = Saver._write, Callbacks.after_step

    def late(self: Saver, *arguments: Any) -> str:
        if self.position.steps < 6:
            assert stepped.wait(LONG), "training waits for the checkpoint"
        latest = self.folder / "latest"
        named.append(latest.read_text() if latest.is_file() else "")
        return write(self, *arguments)

    def noted(self: Callbacks, step: Any) -> None:
        if step.position.steps % 2:
            stepped.set()
        after_step(self, step)
        if step.position.steps % 2:
            stepped.clear()

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "_write", late)
        patch.setattr(Callbacks, "after_step", noted)
        yield named


def test_training_goes_on_and_the_checkpoint_is_that_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "at once", background=False)
    with held_up(monkeypatch) as named:
        run(tmp_path / "later", background=True)
    assert named == ["", "step-00000002", "step-00000004"]
    assert kept(tmp_path / "later") == [2, 4, 6] and hidden(tmp_path / "later") == []
    for step in (2, 4, 6):
        assert_same(tmp_path / "at once", tmp_path / "later", step)


def test_a_full_disk_is_told_when_the_next_one_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tmp_path / "whole", background=True)
    for answer in ("warn", "stop"):
        with monkeypatch.context() as patch:
            disk = FullDisk(patch)
            begin = Saver.begin

            def fill(self: Saver, position: Any, *arguments: Any, disk: FullDisk = disk, begin: Any = begin) -> None:
                disk.full = position.steps == 3
                begin(self, position, *arguments)

            patch.setattr(Saver, "begin", fill)
            options = {"checkpoint_every": 1, "on_checkpoint_error": answer}
            if answer == "warn":
                assert run(tmp_path / "warn", background=True, **options)["failed_checkpoints"] == [3]
                assert kept(tmp_path / "warn") == [1, 2, 4, 5, 6] and "the run goes on" in capsys.readouterr().err
            else:
                with pytest.raises(NotWritten, match=f"{FULL}; make room, and --resume auto"):
                    run(tmp_path / "stop", background=True, **options)
    again = run(tmp_path / "stop", background=True, checkpoint_every=1, resume="auto")
    assert again["eval_loss"] == whole["eval_loss"]


def test_sigterm_saves_although_the_one_before_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, begin = FullDisk(monkeypatch), Saver.begin

    def fill(self: Saver, position: Any, *arguments: Any) -> None:
        begin(self, position, *arguments)
        if disk.full:
            wait([self.pending])  # type: ignore[list-item]
            disk.full = False
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Saver, "begin", fill)
    options = {"checkpoint_every": 2, "on_checkpoint_error": "stop"}
    with pytest.raises(Stopped, match="behind step 2 of 6"):
        run(tmp_path, background=True, **options)
    assert kept(tmp_path) == [2]


def _run(out: str, background: bool) -> None:
    run(Path(out), background)


def test_two_processes(tmp_path: Path) -> None:
    for background in (False, True):
        run_ranks(_run, 2, str(tmp_path / str(background)), background)
    assert kept(tmp_path / "True") == [2, 4, 6]
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("False", "True"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for step in (2, 4):
        assert_same(tmp_path / "False", tmp_path / "True", step)
