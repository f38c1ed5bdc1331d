"""Which runs a sweep makes, and in which order."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from beni.config import RunConfig
from beni.eval.answers import write_answers
from beni.sweep.pool import Ended, Pool
from beni.sweep.sweep import Sweep
from tests.sweep.runs import answered, cell, ran

RATES = (1e-3, 1e-4)
LOSSES = {
    ("mlp", 1e-3): 0.5,
    ("mlp", 1e-4): 0.2,
    ("mlp", 2e-4): 1.0,
    ("perceiver", 1e-3): float("nan"),
    ("perceiver", 1e-4): 3.0,
}
"""By connector and learning rate; `sva` fails."""


@dataclass(slots=True)
class Noted(Pool):
    """Trains nothing: runs have the losses above, and are noted."""

    made: list[tuple[str, int, float]] = field(default_factory=list)

    def run(self, configs: Sequence[RunConfig], ended: Callable[[RunConfig, Ended], None]) -> None:
        for config in configs:
            name, lr, folder = config.connector.plugin.name, config.optim.lr, Path(config.run.out)
            self.made.append((name, config.run.seed, lr))
            if name == "sva":
                ended(config, Ended("no room"))
                continue
            result: dict[str, Any] = {**ran([True]).result, "val_loss": LOSSES[name, lr], "wall_s": 1.0}
            folder.mkdir(parents=True)
            write_answers(folder / "predictions.jsonl", iter(answered([True])))
            (folder / "config.json").write_text(json.dumps(config.to_dict()))
            (folder / "result.json").write_text(json.dumps(result))
            ended(config, Ended(""))


def made(folder: Path, names: Sequence[str], rates: Sequence[float]) -> list[tuple[str, int, float]]:
    pool = Noted(1)
    sweep = Sweep(folder, [cell(name) for name in names], [5, 6], rates, pool, "beni sweep", {})
    sweep.train()
    sweep.report()
    return pool.made


def test_every_cell_tries_all_rates_and_takes_its_own_best(tmp_path: Path) -> None:
    tried = [(name, 5, lr) for name in ("mlp", "perceiver") for lr in RATES]
    chosen = [("mlp", 6, 1e-4), ("perceiver", 6, 1e-4)]
    assert made(tmp_path, ["mlp", "perceiver"], RATES) == tried + chosen, "a loss that is no number is the worst"
    assert made(tmp_path, ["mlp", "perceiver"], RATES) == [], "nothing is done twice"
    assert "6 of 6 runs have ended" in (tmp_path / "leaderboard.html").read_text()


def test_runs_of_other_options_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, ["mlp", "perceiver"], RATES)
    made(tmp_path, ["mlp", "perceiver"], RATES)
    assert "not compared" not in capsys.readouterr().out
    made(tmp_path, ["mlp"], RATES)
    said = "3 runs there are of other options, and are not compared: --connector perceiver, now mlp"
    assert said in capsys.readouterr().out.splitlines(), "none of what else a perceiver has"
    made(tmp_path, ["perceiver"], RATES[:1])
    said = "--lr 0.0001, now 0.001; --connector mlp, now perceiver"
    assert f"5 runs there are of other options, and are not compared: {said}" in capsys.readouterr().out


def test_a_cell_whose_trials_all_fail_has_no_rate_and_is_not_trained_at_any(tmp_path: Path) -> None:
    assert made(tmp_path, ["sva"], RATES) == [("sva", 5, lr) for lr in RATES]
    page = (tmp_path / "leaderboard.html").read_text()
    assert "no room" in page and "Nothing has ended yet" in page


def test_without_rates_to_try_each_cell_has_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(tmp_path, ["mlp"], ()) == [("mlp", 5, 2e-4), ("mlp", 6, 2e-4)]
    assert "mlp, seed 6: accuracy 100.0 %, blind 10.0 %, 1 s" in capsys.readouterr().out
