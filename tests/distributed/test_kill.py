"""`kill -9` at any moment loses nothing: the continued run ends with the bits of one that was never stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

STEPS = 8
RUN = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from beni.training import loop, saving
from beni.training.run import train
from tests.training.small import small_run

out, moment, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = 0

def dies(function):
    def wrapper(*arguments, **named):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return wrapper

if moment == "backward":
    torch.Tensor.backward = dies(torch.Tensor.backward)
elif moment == "optimizer":
    loop.clip = dies(loop.clip)
elif moment == "written":  # the shard is there, the checkpoint is not committed
    saving.sha256 = dies(saving.sha256)
elif moment == "commit":  # renamed, but `latest` still names the one before
    saving._flush = dies(saving._flush)
train(small_run(out, optim={"steps": 8}, data={"augment": 0.1},
                run={"out": str(out), "checkpoint_every": 1, "resume": "auto"}))
"""


def run(out: Path, moment: str = "never", at: int = 0) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(out), moment, str(at)], env=environment, capture_output=True, check=False
    )
    return done.returncode


def last_calls(moment: str) -> int:
    """How often the function that dies is called in a run of STEPS steps with 2 rows each and a checkpoint per step."""
    return {"backward": 2 * STEPS, "optimizer": STEPS, "written": 2 * STEPS, "commit": 5 * STEPS}[moment]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole")
    assert run(out) == 0
    return load_file(out / "model" / "model.safetensors")


def check(out: Path, moment: str, at: int, whole: dict[str, torch.Tensor]) -> None:
    assert run(out, moment, at) == -signal.SIGKILL
    assert run(out) == 0
    again = load_file(out / "model" / "model.safetensors")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(("moment", "at"), [("backward", 11), pytest.param("commit", 18, marks=pytest.mark.slow)])
def test_killed_and_continued(tmp_path: Path, moment: str, at: int, whole: dict[str, torch.Tensor]) -> None:
    check(tmp_path, moment, at, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_moment(tmp_path: Path, seed: int, whole: dict[str, torch.Tensor]) -> None:
    rng = np.random.default_rng(seed)
    moment = ("backward", "optimizer", "written", "commit")[seed % 4]
    check(tmp_path, moment, int(rng.integers(1, last_calls(moment) + 1)), whole)
