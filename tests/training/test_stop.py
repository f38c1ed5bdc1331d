"""SIGTERM and Ctrl-C: a checkpoint, a code of its own, and a continuation with the same bits."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from beni.errors import Stopped
from beni.testing.launch import run_ranks
from beni.training import loop
from beni.training.run import train
from beni.training.stop import stop_noted
from tests.training.small import small_run


def _train_and_ask_to_stop(out: str, rank: str, resume: str = "never") -> None:
    """Train six steps; in the third one process and its data worker get SIGTERM. `Stopped` should come of it."""
    original, calls = loop.clip, 0

    def clip(parameters: list[torch.nn.Parameter], largest: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3 and os.environ.get("RANK", "0") == rank:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGTERM)  # type: ignore[arg-type]
                worker.join(timeout=1)
                assert worker.is_alive()
            os.kill(os.getpid(), signal.SIGTERM)
        return original(parameters, largest)

    loop.clip = clip
    run: dict[str, Any] = {"out": out, "resume": resume}
    try:
        train(small_run(Path(out), optim={"steps": 6}, run=run, data={"workers": 1}))
    except Stopped as stopped:
        assert f"behind step 3 of 6; everything is saved: the same command with --out {out} --resume" in str(stopped)
        Path(f"{out}.stopped-{os.environ.get('RANK', '0')}").touch()
    finally:
        loop.clip = original


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_asked_to_stop_goes_on_with_the_same_bits(tmp_path: Path, processes: int) -> None:
    """One process is asked, and all stop before the same step."""
    for name, rank, resume in (("whole", "nobody", "never"), ("part", str(processes - 1), "never")):
        run_ranks(_train_and_ask_to_stop, processes, str(tmp_path / name), rank, resume)
    assert sorted(p.name for p in tmp_path.glob("*.stopped-*")) == [f"part.stopped-{r}" for r in range(processes)]
    assert (tmp_path / "part/checkpoints/latest").read_text() == "step-00000003"
    assert not (tmp_path / "part/model").exists()
    run_ranks(_train_and_ask_to_stop, processes, str(tmp_path / "part"), "nobody", "auto")
    whole, part = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert whole.keys() == part.keys() and all(torch.equal(whole[name], part[name]) for name in whole)


def test_the_command_ends_with_its_own_code() -> None:
    program = "from beni.cli import commands, main\nfrom beni.errors import Stopped\n"
    program += "def train(*_): raise Stopped('stopped')\ncommands.train = train\nmain.main(['train'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, "error: stopped\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_handler_before_is_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_noted() as came:
        assert not came()
        os.kill(os.getpid(), number)
        assert came()
    assert signal.getsignal(number) is before


def test_other_processes_than_the_main_one_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stop_noted(told=False) as came:
        os.kill(os.getpid(), signal.SIGINT)
        assert came() and capsys.readouterr().err == ""


def test_what_was_ignored_stays_ignored() -> None:
    """As in a script that runs it in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_noted() as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert not came() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_saves_also_where_ctrl_c_has_ended_its_reader(tmp_path: Path) -> None:
    """As in `… 2>&1 | tee log`: every line that is written from then on fails."""
    config = small_run(tmp_path / "run", optim={"steps": 10**6}, data={"workers": 1})
    program = "import json, sys\nfrom beni.config import run_config_from_dict\nfrom beni.training.run import train\n"
    program += "train(run_config_from_dict(json.loads(sys.argv[1])))"
    with subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(config.to_dict())], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        assert run.stdout is not None
        for _ in run.stdout:
            break
        log = tmp_path / "run" / "metrics.jsonl"
        while not (log.is_file() and log.stat().st_size):
            time.sleep(0.01)
        run.stdout.close()
        run.send_signal(signal.SIGINT)
        run.wait()
    assert (tmp_path / "run" / "checkpoints" / "latest").is_file()


def test_the_second_ctrl_c_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    with stop_noted() as came, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert came() and "Ctrl-C once more" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_is_stopped_before_its_first_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small_run(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr("beni.training.run.stop_noted", lambda _: nullcontext(lambda: True))
        with pytest.raises(Stopped, match="behind step 0 of 4"):
            train(small_run(tmp_path / "part"))
    train(small_run(tmp_path / "part", run={"out": str(tmp_path / "part"), "resume": "auto"}))
    whole, part = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(whole[name], part[name]) for name in whole)
