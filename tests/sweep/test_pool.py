"""Runs in processes of their own: what becomes of failures, and of runs whose sweep is gone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from beni.config import RunConfig
from beni.errors import Stopped
from beni.sweep.child import ORPHANED
from beni.sweep.pool import Ended, Pool
from tests.training.small import small_run


def test_a_failure_is_told_and_keeps_no_other_from_running(tmp_path: Path) -> None:
    missing = small_run(tmp_path / "missing", data={"data": ["text:nowhere.txt"]})
    whole = small_run(tmp_path / "whole")
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "log.txt").write_text("error: of an earlier try\n")
    told: dict[str, Ended] = {}

    def ended(config: RunConfig, how: Ended) -> None:
        told[Path(config.run.out).name] = how

    Pool(2).run([missing, whole], ended)
    assert told["missing"].refused and "nowhere.txt" in told["missing"].failed
    assert told["whole"] == Ended("") and json.loads((tmp_path / "whole" / "result.json").read_text())["steps"] == 4
    written = (tmp_path / "whole" / "result.json").stat().st_mtime_ns
    Pool(1).run([whole], ended)
    assert (tmp_path / "whole" / "result.json").stat().st_mtime_ns == written, "what has ended is not run again"


def test_ctrl_c_lets_runs_save_and_says_so(tmp_path: Path) -> None:
    """It goes to the sweep alone, which asks its runs."""
    config = small_run(tmp_path / "run", optim={"steps": 10**6})
    log = tmp_path / "run" / "metrics.jsonl"

    def press() -> None:
        while not (log.is_file() and log.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(Stopped, match="the runs saved what they had, and the same command goes on"):
        Pool(1).run([config], lambda *_: None)
    assert (tmp_path / "run" / "checkpoints" / "latest").is_file()


def test_a_run_ends_with_its_sweep(tmp_path: Path) -> None:
    config = small_run(tmp_path / "run", optim={"steps": 10**6})
    child = subprocess.Popen(
        [sys.executable, "-m", "beni.sweep.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(json.dumps(config.to_dict()) + "\n")
    child.stdin.flush()
    assert child.stdout.readline(), "it says what it trains"
    child.stdin.close()
    assert child.wait(timeout=60) == ORPHANED
    child.stdout.close()
