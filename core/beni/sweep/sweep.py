"""A sweep as a whole: which runs are made, in which order, and what is told of them."""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from beni.changes import Options, nearest, spelled, told
from beni.config import RunConfig
from beni.eval.figure import leading
from beni.progress import bar
from beni.report.figures import hundredfold
from beni.sweep.cells import Cell, figured_by, placed
from beni.sweep.leaderboard import Failure, Progress, Trial, write_leaderboard
from beni.sweep.pool import Ended, Pool
from beni.sweep.standings import Ran, read_run, stand
from beni.training.outputs import recorded

REPORT_EVERY = 30.0
"""Seconds after which a run that ends brings the leaderboard up to date; comparing takes time that runs could use."""


@dataclass(slots=True)
class Sweep:
    """What has been run, and how."""

    folder: Path
    cells: Sequence[Cell]
    seeds: Sequence[int]
    rates: Sequence[float]
    """Learning rates that each cell tries; if there are none, it has its own."""
    tuned: Sequence[int]
    """Seeds with which it tries them."""
    pool: Pool
    command: str
    """What repeats it."""
    machine: Mapping[str, Any]
    """What it runs on, by name."""
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    """Runs without a result, by cell and seed, and why."""
    read: dict[Path, Ran] = field(default_factory=dict)
    """What has been read of runs that have ended."""
    reported: float = 0.0
    """When the leaderboard was written."""

    @property
    def runs(self) -> int:
        """How many there will be."""
        return len(self.cells) * (len(self.seeds) + len(self.tuned) * max(0, len(self.rates) - 1))

    def train(self) -> None:
        """Run what has no result yet; the leaderboard is written behind each run."""
        if others := self._others():
            print(others)
        if self.rates:
            self._run([(cell, seed, lr) for seed in self.tuned for cell in self.cells for lr in self.rates])
        if rest := [seed for seed in self.seeds if not self.rates or seed not in self.tuned]:
            rates = [(cell, self._rate(cell)) for cell in self.cells]
            self._run([(cell, seed, lr) for cell, lr in rates if lr is not None for seed in rest])

    def report(self) -> None:
        """Write the leaderboard of what has ended."""
        chosen = [(cell, self._rate(cell)) for cell in self.cells]
        found = [(cell, lr, runs) for cell, lr in chosen if lr is not None and (runs := self._ended(cell, lr))]
        trials = [trial for cell in self.cells for trial in self._trials(cell)]
        ended = sum(len(runs) for _, _, runs in found)
        ended += sum(len(self._tried(cell, lr)) for cell, rate in chosen for lr in self.rates if lr != rate)
        progress = Progress(self.command, self.runs, ended, self.pool.jobs, self.machine, self._failures(), trials)
        write_leaderboard(self.folder, stand(found), progress)

    def _others(self) -> str:
        """Which runs have ended in the folder that are none of this sweep's, and in what they differ; or nothing."""
        own = [
            placed(cell.at(seed, lr), self.folder)
            for cell in self.cells
            for seed in self.seeds
            for lr in self.rates or [cell.config.optim.lr]
        ]
        outs = {config.run.out for config in own}
        ended = (self.folder / "runs").glob("*/seed-*/result.json")
        others = [result.parent for result in sorted(ended) if str(result.parent) not in outs]
        if not others:
            return ""
        here = [_options(config.to_dict()) for config in own]
        there = [_options(tables) for folder in others if (tables := recorded(folder)) is not None]
        what = told(there, [nearest(one, here) for one in there]) or "another version of parts"
        return f"{len(others)} runs there are of other options, and are not compared: {what}"

    def _failures(self) -> list[Failure]:
        """Seeds of a cell that failed for the same reason are one failure."""
        seeds: dict[tuple[str, str], list[int]] = defaultdict(list)
        for (name, seed), why in sorted(self.failed.items()):
            seeds[name, why].append(seed)
        return [Failure(name, found, why) for (name, why), found in seeds.items()]

    def _report_if_possible(self) -> None:
        """No run ends because the leaderboard cannot be written now; it will be written again."""
        try:
            self.report()
        except OSError as error:
            tqdm.write(f"the leaderboard cannot be written: {error}", file=sys.stderr)
        self.reported = time.monotonic()

    def _run(self, asked: Sequence[tuple[Cell, int, float]]) -> None:
        named = {}
        for cell, seed, lr in asked:
            config = placed(cell.at(seed, lr), self.folder)
            named[config.run.out] = (config, self._title(cell, lr))
        waiting = {out: pair for out, pair in named.items() if not (Path(out) / "result.json").is_file()}
        done = len(named) - len(waiting)
        if done:
            print(f"{done} of {len(named)} runs have ended before")
        with bar(total=len(named), initial=done, desc="runs", unit="run") as told:

            def ended(config: RunConfig, how: Ended) -> None:
                _, name = named[config.run.out]
                self.failed.pop((name, config.run.seed), None)
                if how.failed:
                    self.failed[name, config.run.seed] = how.failed
                said = f"{'refused' if how.refused else 'failed'}: {how.failed}" if how.failed else _told(config)
                tqdm.write(f"{name}, seed {config.run.seed}: {said}", file=sys.stdout)
                sys.stdout.flush()
                told.update()
                if time.monotonic() - self.reported > REPORT_EVERY:
                    self._report_if_possible()

            self.pool.run([config for config, _ in waiting.values()], ended)

    def _rate(self, cell: Cell) -> float | None:
        """The cell's learning rate: its own, or the best of those that were tried so far, if any has a result."""
        if not self.rates:
            return cell.config.optim.lr
        return next((trial.lr for trial in self._trials(cell) if trial.chosen), None)

    def _trials(self, cell: Cell) -> list[Trial]:
        """What a cell tried; best is the rate with the most losses that are numbers, then that with the lowest mean."""
        losses = {lr: self._losses(cell, lr) for lr in self.rates}
        ranks = {lr: (-len(found), fmean(found or [inf])) for lr, found in losses.items()}
        trained = [lr for lr in self.rates if self._tried(cell, lr)]
        chosen = min(trained, key=ranks.__getitem__, default=None)
        return [
            Trial(cell.name, lr, fmean(found) if found else None, len(found), lr == chosen)
            for lr, found in losses.items()
        ]

    def _losses(self, cell: Cell, lr: float) -> list[float]:
        losses = [float(ran.result["val_loss"]) for ran in self._tried(cell, lr)]
        return [loss for loss in losses if isfinite(loss)]

    def _tried(self, cell: Cell, lr: float) -> list[Ran]:
        return [ran for seed in self.tuned if (ran := self._ran(cell, seed, lr)) is not None]

    def _title(self, cell: Cell, lr: float) -> str:
        return f"{cell.name}, lr {lr:g}" if self.rates else cell.name

    def _ended(self, cell: Cell, lr: float) -> list[Ran]:
        return [ran for seed in self.seeds if (ran := self._ran(cell, seed, lr)) is not None]

    def _ran(self, cell: Cell, seed: int, lr: float) -> Ran | None:
        folder = Path(placed(cell.at(seed, lr), self.folder).run.out)
        if folder not in self.read and (folder / "result.json").is_file():
            self.read[folder] = read_run(folder, seed)
        return self.read.get(folder)


def _options(tables: Mapping[str, Any]) -> Options:
    """What tells one run of a sweep from another."""
    figured = figured_by(tables)
    return spelled(figured | {"run": {**figured["run"], "seed": tables.get("run", {}).get("seed")}})


def _told(config: RunConfig) -> str:
    result = json.loads((Path(config.run.out) / "result.json").read_text(encoding="utf-8"))
    figure = leading(result)
    reached, blind = (hundredfold(result.get(name), figure.unit) for name in (figure.name, f"{figure.name}_blind"))
    return f"{figure.title} {reached}, blind {blind}, {result['wall_s']:.0f} s"
