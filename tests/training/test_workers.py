"""A data worker that dies: the run ends and says so, and what was saved is still there."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from beni.errors import LostProcess
from beni.training.callbacks import Callbacks
from beni.training.run import train
from tests.training.small import small_run


def train_and_kill_the_worker(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train eight steps with a checkpoint behind the second; behind the third the data worker is killed."""
    original = Callbacks.after_step

    def after_step(self: Callbacks, report: Any) -> None:
        original(self, report)
        if report.position.steps == 3:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)  # type: ignore[arg-type]

    monkeypatch.setattr(Callbacks, "after_step", after_step)
    run = {"out": str(out), "checkpoint_every": 2, "eval_every": 100}
    train(small_run(out, data={"workers": 1}, optim={"steps": 8}, run=run))


def test_a_dead_worker_ends_the_run_and_not_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        LostProcess, match=r"a data worker .process \d+. was killed by SIGKILL: often memory.*--workers.*--resume auto"
    ) as caught:
        train_and_kill_the_worker(tmp_path, monkeypatch)
    assert caught.value.exit_code == os.EX_UNAVAILABLE
    monkeypatch.undo()
    run = {"out": str(tmp_path), "resume": "auto", "eval_every": 100}
    assert train(small_run(tmp_path, data={"workers": 0}, optim={"steps": 8}, run=run))["steps"] == 8
