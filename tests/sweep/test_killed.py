"""`kill -9` of a sweep loses nothing: it ends with the bits of one that was never stopped."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_sweep import RUN

SWEEP = f"{RUN} --connector mlp perceiver --connector.num-latents 4 --seed 0 1 --jobs 2 --checkpoint-every 1"
ENDED = ": accuracy "
"""In the line of a run that has ended."""


def sweep(out: Path, kill_behind: int = 0) -> None:
    """To its end, or killed when so many runs have ended."""
    beni = [sys.executable, "-c", "from beni.cli.main import main; main()"]
    process = subprocess.Popen(
        [*beni, "sweep", *SWEEP.split(), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout is not None
    with process.stdout as lines:
        for _ in range(kill_behind):
            assert any(ENDED in line for line in lines)
        if kill_behind:
            process.kill()
        else:
            lines.read()
    assert process.wait() == (-9 if kill_behind else 0)


def board(out: Path) -> list[list[str]]:
    rows = csv.DictReader((out / "leaderboard.csv").open())
    return [[row[name] for name in ("name", "accuracy", "low", "high", "blind", "steps")] for row in rows]


@pytest.mark.slow
def test_killed_twice_and_run_again(tmp_path: Path) -> None:
    sweep(tmp_path / "whole")
    sweep(tmp_path / "killed", kill_behind=1)
    sweep(tmp_path / "killed", kill_behind=1)
    sweep(tmp_path / "killed")
    assert board(tmp_path / "whole") == board(tmp_path / "killed")
    found = sorted((tmp_path / "whole").glob("runs/*/*/model/model.safetensors"))
    assert len(found) == 4
    for path in found:
        one, other = load_file(path), load_file(tmp_path / "killed" / path.relative_to(tmp_path / "whole"))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
