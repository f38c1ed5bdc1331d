"""`beni sweep`: a grid of runs, and the leaderboard that compares them."""

import fcntl
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import torch

from beni.cli.grid import SWEEP, combinations
from beni.cli.machine import machine
from beni.cli.options import parse, parse_run, split_own
from beni.config import RunConfig
from beni.data.spec import validation
from beni.errors import ConfigError
from beni.sweep.cells import Cell, grid, identity
from beni.sweep.pool import Pool
from beni.sweep.sweep import Sweep
from beni.training.outputs import room


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Train every combination of what options are given, and compare them: a leaderboard with intervals and costs.

    All options of `beni train` are taken, with several values: --connector mlp perceiver --fusion inline xattn
    --seed 0 1 2 makes twelve runs of four combinations. What is a list by itself is repeated for that. The same command
    goes on where it was stopped. All runs get the same budget: --steps, --epochs, --samples or --flops.
    """

    tune_lr: tuple[float, ...] = ()
    """Peak learning rates (--lr) that each combination tries with each seed; what is compared is the one with the
    lowest mean loss on the validation split. Without it combinations are compared at one learning rate, which suits
    some of them better than others."""
    tune_seeds: int = 0
    """How many of the seeds, the first ones, try every learning rate; 0: all. One takes the fewest runs, and often
    cannot tell two rates apart."""
    jobs: int = 0
    """Runs at a time, each with its share of the cores, or a GPU; 0: as many as there are GPUs, or one."""
    out: str = ""
    """Folder for the runs and the leaderboard; by default runs/<time>-sweep."""


def sweep(arguments: Sequence[str], program: str) -> None:
    """Train what is missing of a grid, print the leaderboard, and write it."""
    words, rest = split_own(SweepOptions, arguments)
    options = parse(SweepOptions, words, program)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep starts its processes itself: leave out torchrun, and see --jobs")
    if min(options.jobs, options.tune_seeds) < 0 or not all(0 < lr < inf for lr in options.tune_lr):
        raise ConfigError("--jobs and --tune-seeds cannot be negative, and what --tune-lr tries must be above 0")
    found = [(each.varied, _config(parse_run(each.words, program, others=[SWEEP]))) for each in combinations(rest)]
    cells, seeds = grid(found)
    _check(found, cells, len(seeds), options)
    gpus = _gpus() if any(cell.config.run.device != "cpu" for cell in cells) else []
    pool = Pool(options.jobs or len(gpus) or 1, gpus)
    folder = Path(options.out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-sweep")
    command = shlex.join(["beni", "sweep", *_with_out(arguments, options.out, folder)])
    with _alone(folder):
        rates, tuned = list(dict.fromkeys(options.tune_lr)), seeds[: options.tune_seeds or None]
        whole = Sweep(folder, cells, seeds, rates, tuned, pool, command, machine())
        print(f"{len(cells)} combinations, {len(seeds)} seeds, {pool.jobs} at a time, in {folder}", flush=True)
        whole.report()
        try:
            whole.train()
        finally:
            with room(folder):
                whole.report()
    print((folder / "leaderboard.md").read_text(encoding="utf-8"))
    print(f"wrote {folder / 'leaderboard.html'}, leaderboard.md and leaderboard.csv")
    if not whole.read:
        raise ConfigError(f"no run has a result; {folder / 'leaderboard.html'} says why")


def _check(
    found: Sequence[tuple[Mapping[str, str], RunConfig]], cells: Sequence[Cell], seeds: int, options: SweepOptions
) -> None:
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
    if options.tune_seeds and not options.tune_lr:
        raise ConfigError("--tune-seeds says how many seeds try the learning rates of --tune-lr: give that too")
    if options.tune_seeds > seeds:
        raise ConfigError(f"--tune-seeds {options.tune_seeds}: there are {seeds} seeds (--seed)")
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
