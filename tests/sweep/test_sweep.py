"""Which runs a sweep makes, and in which order."""

import csv
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
    ("mlp", 1e-3): {5: 0.4, 6: 0.5},
    ("mlp", 1e-4): {5: 0.5, 6: 0.2},
    ("mlp", 2e-4): {5: 1.0, 6: 1.0},
    ("perceiver", 1e-3): {5: float("nan"), 6: 0.1},
    ("perceiver", 1e-4): {5: 3.0, 6: 3.0},
    ("concat", 1e-3): {5: 0.1},
    ("concat", 1e-4): {5: 3.0, 6: 3.0},
    ("dragonfly", 1e-3): {5: 0.4},
    ("dragonfly", 1e-4): {6: 0.3},
}
"""By connector and learning rate, and seed; runs that are missing here fail."""


@dataclass(slots=True)
class Noted(Pool):
    """Trains nothing: runs have the losses above, and are noted."""

    made: list[tuple[str, int, float]] = field(default_factory=list)

    def run(self, configs: Sequence[RunConfig], ended: Callable[[RunConfig, Ended], None]) -> None:
        for config in configs:
            name, lr, folder = config.connector.plugin.name, config.optim.lr, Path(config.run.out)
            self.made.append((name, config.run.seed, lr))
            if config.run.seed not in LOSSES.get((name, lr), {}):
                ended(config, Ended("no room"))
                continue
            result: dict[str, Any] = {
                **ran([True]).result,
                "val_loss": LOSSES[name, lr][config.run.seed],
                "wall_s": 1.0,
            }
            folder.mkdir(parents=True)
            write_answers(folder / "predictions.jsonl", iter(answered([True])))
            (folder / "config.json").write_text(json.dumps(config.to_dict()))
            (folder / "result.json").write_text(json.dumps(result))
            ended(config, Ended(""))


SEEDS = (5, 6)


def made(
    folder: Path, names: Sequence[str], rates: Sequence[float], tuned: Sequence[int] = SEEDS[:1]
) -> list[tuple[str, int, float]]:
    pool = Noted(1)
    sweep = Sweep(folder, [cell(name) for name in names], SEEDS, rates, tuned, pool, "beni sweep", {})
    sweep.train()
    sweep.report()
    return pool.made


def chosen(folder: Path) -> dict[str, float]:
    """The learning rate of each combination of a leaderboard."""
    rows = csv.DictReader((folder / "leaderboard.csv").read_text().splitlines())
    return {row["name"]: float(row["lr"]) for row in rows}


def test_every_cell_tries_all_rates_with_every_seed_and_takes_its_own_best(tmp_path: Path) -> None:
    every = [(name, seed, lr) for seed in SEEDS for name in ("mlp", "perceiver", "concat") for lr in RATES]
    assert made(tmp_path, ["mlp", "perceiver", "concat"], RATES, SEEDS) == every
    assert chosen(tmp_path) == {
        "mlp": 1e-4,  # the lower mean, though the first seed alone says otherwise
        "perceiver": 1e-4,  # a loss that is no number is the worst
        "concat": 1e-4,  # and so is a run that failed
    }
    again = made(tmp_path, ["mlp", "perceiver", "concat"], RATES, SEEDS)
    assert again == [("concat", 6, 1e-3)], "nothing is done twice but what failed"
    assert "11 of 12 runs have ended" in (tmp_path / "leaderboard.html").read_text()


def test_with_some_of_the_seeds_the_others_take_the_best_rate(tmp_path: Path) -> None:
    tried = [(name, 5, lr) for name in ("mlp", "perceiver") for lr in RATES]
    others = [("mlp", 6, 1e-3), ("perceiver", 6, 1e-4)]
    assert made(tmp_path, ["mlp", "perceiver"], RATES) == tried + others
    assert made(tmp_path, ["mlp", "perceiver"], RATES) == [], "nothing is done twice"
    assert "6 of 6 runs have ended" in (tmp_path / "leaderboard.html").read_text()


def test_a_failure_counts_also_where_the_sweep_is_begun_again(tmp_path: Path) -> None:
    made(tmp_path, ["concat"], RATES, SEEDS)
    Sweep(tmp_path, [cell("concat")], SEEDS, RATES, SEEDS, Noted(1), "beni sweep", {}).report()
    assert chosen(tmp_path) == {"concat": 1e-4}
    page = (tmp_path / "leaderboard.html").read_text()
    assert "3 of 4 runs have ended" in page
    assert '<td class="n">0.1</td><td class="n">1</td><td></td>' in page
    assert '<td class="n">3</td><td class="n">2</td><td>chosen</td>' in page


def test_of_rates_that_fail_equally_often_the_lower_loss_is_chosen(tmp_path: Path) -> None:
    every = [("dragonfly", seed, lr) for seed in SEEDS for lr in RATES]
    assert made(tmp_path, ["dragonfly"], RATES, SEEDS) == every, "the chosen one's failure is not tried twice"
    assert chosen(tmp_path) == {"dragonfly": 1e-4}


def test_runs_of_other_options_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, ["mlp", "perceiver"], RATES)
    made(tmp_path, ["mlp", "perceiver"], RATES)
    assert "not compared" not in capsys.readouterr().out
    made(tmp_path, ["mlp"], RATES)
    said = "3 runs there are of other options, and are not compared: --connector perceiver, now mlp"
    assert said in capsys.readouterr().out.splitlines(), "none of what else a perceiver has"
    made(tmp_path, ["perceiver"], RATES[:1])
    said = "--connector mlp, now perceiver; --lr 0.0001, now 0.001"
    assert f"5 runs there are of other options, and are not compared: {said}" in capsys.readouterr().out


def test_a_cell_whose_trials_all_fail_has_no_rate_and_is_not_trained_at_any(tmp_path: Path) -> None:
    assert made(tmp_path, ["sva"], RATES) == [("sva", 5, lr) for lr in RATES]
    page = (tmp_path / "leaderboard.html").read_text()
    assert "no room" in page and "Nothing has ended yet" in page


def test_without_rates_to_try_each_cell_has_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(tmp_path, ["mlp"], ()) == [("mlp", 5, 2e-4), ("mlp", 6, 2e-4)]
    assert "mlp, seed 6: accuracy 100.0 %, blind 10.0 %, 1 s" in capsys.readouterr().out
