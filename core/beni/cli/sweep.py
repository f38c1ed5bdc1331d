"""`beni sweep`: a grid of runs, and the leaderboard that compares them."""

import fcntl
import json
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

import torch
from tqdm import tqdm

from beni.cli.grid import SWEEP, combinations
from beni.cli.machine import machine
from beni.cli.options import parse, parse_run, split_own
from beni.config import RunConfig
from beni.data.spec import validation
from beni.errors import ConfigError
from beni.report.figures import percent
from beni.sweep.cells import Cell, grid, identity, placed
from beni.sweep.leaderboard import Failure, Progress, Trial, write_leaderboard
from beni.sweep.pool import Ended, Pool
from beni.sweep.standings import Ran, read_run, stand
from beni.training.outputs import room

REPORT_EVERY = 30.0
"""Seconds after which a run that ends brings the leaderboard up to date; comparing takes time that runs could use."""


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Train every combination of what options are given, and compare them: a leaderboard with intervals and costs.

    All options of `beni train` are taken, with several values: --connector mlp perceiver --fusion inline xattn
    --seed 0 1 2 makes twelve runs of four combinations. What is a list by itself is repeated for that. The same command
    goes on where it was stopped. All runs get the same budget: --steps, --epochs, --samples or --flops.
    """

    tune_lr: tuple[float, ...] = ()
    """Peak learning rates (--lr) to try for each combination, with the first seed; all seeds take the one with the
    lowest loss on the validation split. Without it combinations are compared at one learning rate, which suits some of
    them better than others."""
    jobs: int = 0
    """Runs at a time, each with its share of the cores, or a GPU; 0: as many as there are GPUs, or one."""
    out: str = ""
    """Folder for the runs and the leaderboard; by default runs/<time>-sweep."""


@dataclass(slots=True)
class Sweep:
    """What has been run, and how."""

    folder: Path
    cells: Sequence[Cell]
    seeds: Sequence[int]
    rates: Sequence[float]
    pool: Pool
    command: str
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    """Runs without a result, by cell and seed, and why."""
    runs: int = 0
    """How many there will be."""
    read: dict[Path, Ran] = field(default_factory=dict)
    """What has been read of runs that have ended."""
    reported: float = 0.0
    """When the leaderboard was written."""

    def train(self) -> None:
        """Run what has no result yet; the leaderboard is written behind each run."""
        self.runs = len(self.cells) * (len(self.seeds) + max(0, len(self.rates) - 1))
        if self.rates:
            self._run([(cell, self.seeds[0], lr) for cell in self.cells for lr in self.rates])
        self._run([(cell, seed, self._rate(cell)) for cell in self.cells for seed in self.seeds])

    def report(self) -> None:
        """Write the leaderboard of what has ended."""
        chosen = [(cell, self._rate(cell)) for cell in self.cells]
        found = [(cell, lr, runs) for cell, lr in chosen if (runs := self._ended(cell, lr))]
        trials = [trial for cell in self.cells for trial in self._trials(cell)]
        ended = sum(len(runs) for _, _, runs in found) + sum(
            trial.val_loss is not None and not trial.chosen for trial in trials
        )
        progress = Progress(self.command, self.runs, ended, self.pool.jobs, machine(), self._failures(), trials)
        write_leaderboard(self.folder, stand(found), progress)

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
            rate = f", lr {lr:g}" if self.rates else ""
            named[config.run.out] = (config, f"{cell.name}{rate}")
        waiting = {out: pair for out, pair in named.items() if not (Path(out) / "result.json").is_file()}
        done = len(named) - len(waiting)
        if done:
            print(f"{done} of {len(named)} runs have ended before")
        with tqdm(total=len(named), initial=done, desc="runs", unit="run") as bar:

            def ended(config: RunConfig, how: Ended) -> None:
                _, name = named[config.run.out]
                self.failed.pop((name, config.run.seed), None)
                if how.failed:
                    self.failed[name, config.run.seed] = how.failed
                said = f"{'refused' if how.refused else 'failed'}: {how.failed}" if how.failed else _told(config)
                tqdm.write(f"{name}, seed {config.run.seed}: {said}", file=sys.stdout)
                sys.stdout.flush()
                bar.update()
                if time.monotonic() - self.reported > REPORT_EVERY:
                    self._report_if_possible()

            self.pool.run([config for config, _ in waiting.values()], ended)

    def _rate(self, cell: Cell) -> float:
        """The cell's learning rate: its own, or the best of those that were tried so far."""
        best = [trial.lr for trial in self._trials(cell) if trial.chosen]
        return best[0] if best else self.rates[0] if self.rates else cell.config.optim.lr

    def _trials(self, cell: Cell) -> list[Trial]:
        losses = [self._val_loss(cell, lr) for lr in self.rates]
        known = [loss for loss in losses if loss is not None]
        chosen = losses.index(min(known)) if known else -1
        return [
            Trial(cell.name, lr, loss, number == chosen)
            for number, (lr, loss) in enumerate(zip(self.rates, losses, strict=True))
        ]

    def _val_loss(self, cell: Cell, lr: float) -> float | None:
        ran = self._ran(cell, self.seeds[0], lr)
        if ran is None:
            return None
        loss = float(ran.result["val_loss"])
        return loss if loss == loss else inf

    def _ended(self, cell: Cell, lr: float) -> list[Ran]:
        return [ran for seed in self.seeds if (ran := self._ran(cell, seed, lr)) is not None]

    def _ran(self, cell: Cell, seed: int, lr: float) -> Ran | None:
        folder = Path(placed(cell.at(seed, lr), self.folder).run.out)
        if folder not in self.read and (folder / "result.json").is_file():
            self.read[folder] = read_run(folder, seed)
        return self.read.get(folder)


def sweep(arguments: Sequence[str], program: str) -> None:
    """Train what is missing of a grid, print the leaderboard, and write it."""
    words, rest = split_own(SweepOptions, arguments)
    options = parse(SweepOptions, words, program)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep starts its processes itself: leave out torchrun, and see --jobs")
    if options.jobs < 0 or not all(0 < lr < inf for lr in options.tune_lr):
        raise ConfigError("--jobs cannot be negative, and what --tune-lr tries must be above 0")
    found = [(each.varied, _config(parse_run(each.words, program, others=[SWEEP]))) for each in combinations(rest)]
    cells, seeds = grid(found)
    _check(found, cells, options)
    gpus = _gpus() if any(cell.config.run.device != "cpu" for cell in cells) else []
    pool = Pool(options.jobs or len(gpus) or 1, gpus)
    folder = Path(options.out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-sweep")
    command = shlex.join(["beni", "sweep", *_with_out(arguments, options.out, folder)])
    with _alone(folder):
        whole = Sweep(folder, cells, seeds, list(dict.fromkeys(options.tune_lr)), pool, command)
        print(f"{len(cells)} combinations, {len(seeds)} seeds, {pool.jobs} at a time, in {folder}", flush=True)
        whole.report()
        try:
            whole.train()
        finally:
            with room(folder):
                whole.report()
    print((folder / "leaderboard.md").read_text(encoding="utf-8"))
    print(f"wrote {folder / 'leaderboard.html'}, leaderboard.md and leaderboard.csv")
    if len(whole.failed) == whole.runs:
        raise ConfigError(f"no run has a result; {folder / 'leaderboard.html'} says why")


def _check(found: Sequence[tuple[Mapping[str, str], RunConfig]], cells: Sequence[Cell], options: SweepOptions) -> None:
    """Refuse a grid that compares nothing, or what cannot be compared."""
    if len({(identity(config), config.run.seed) for _, config in found}) < len(found):
        raise ConfigError(
            "some combinations are the same run: one of the varied options changes nothing in what is trained or judged"
        )
    if len({(cell.config.data.eval_data or cell.config.data.data, cell.config.data.eval_limit) for cell in cells}) > 1:
        raise ConfigError(
            "combinations would be judged on different items: say with one --eval-data and one --eval-limit what all "
            "of them are judged on"
        )
    if options.tune_lr and len({cell.config.optim.lr for cell in cells}) > 1:
        raise ConfigError("--tune-lr chooses --lr for each combination: give it one value, or leave it out")
    for data in {cell.config.data.data for cell in cells} if options.tune_lr else ():
        if not validation(data):
            raise ConfigError(f"--tune-lr compares losses on a validation split, and {', '.join(data)} has none")


def _config(config: RunConfig) -> RunConfig:
    """A run's configuration, without what a sweep decides.

    Raises:
        ConfigError: an option that is about a single run.
    """
    if config.run.resume != "never" or config.run.dry_run:
        raise ConfigError("a sweep goes on by itself and plans nothing: leave out --resume and --dry-run")
    return replace(config, run=replace(config.run, out=""))


def _told(config: RunConfig) -> str:
    result = json.loads((Path(config.run.out) / "result.json").read_text(encoding="utf-8"))
    accuracy, blind = result["accuracy"], result["accuracy_blind"]
    return f"accuracy {percent(accuracy)}, blind {percent(blind)}, {result['wall_s']:.0f} s"


def _gpus() -> list[str]:
    """Names of the GPUs that a process may be given, one each."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return allowed.split(",") if allowed else [str(number) for number in range(torch.cuda.device_count())]


def _with_out(arguments: Sequence[str], out: str, folder: Path) -> list[str]:
    """The arguments, with the folder that was chosen for them: to go on, it must be named."""
    return list(arguments) if out else [*arguments, "--out", str(folder)]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other sweep runs in the folder.

    Raises:
        ConfigError: one does; or it is a file, or the folder of a run.
    """
    if folder.is_file() or (folder / "config.json").exists():
        raise ConfigError(f"--out {folder} {'is a file' if folder.is_file() else 'holds a run'}: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another sweep is running in {folder}: wait for it, or choose another --out") from error
        yield
