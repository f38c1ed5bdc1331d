"""`beni throughput`: what combinations of parts cost to train."""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from beni.bench.measure import Windows, measure
from beni.bench.page import Refused, terminal, told, write_reports
from beni.bench.scaling import Curve, curves
from beni.cli.grid import SWEEP, Combination, combinations
from beni.cli.machine import machine
from beni.cli.options import parse, parse_run, split_own
from beni.config import RunConfig
from beni.errors import BeniError, ConfigError, first_line

DEFAULT = Windows()


@dataclass(frozen=True, slots=True)
class ThroughputOptions:
    """What combinations of parts cost to train: speed, operations, MFU, memory, and what a step spends its time on.

    All options of `beni train` are taken as well, with several values: --connector mlp perceiver --fusion inline xattn
    measures four models. What is a list by itself is repeated for that: several encoders behind one --encoder are one
    model.
    """

    all: bool = False
    """Go through all installed connectors and fusions, but for a kind that is named."""
    warmup_steps: int = DEFAULT.warmup_steps
    """Steps before anything is measured."""
    windows: int = DEFAULT.windows
    """Stretches of steps that are measured; figures are medians over them."""
    window_steps: int = DEFAULT.window_steps
    """Steps of each."""
    scaling: bool = False
    """Also measure how the time of the first combination's step grows with documents, images, the length of a text, the
    side of images, and latents."""
    out: str = ""
    """Folder for report.json, report.md and report.html; by default runs/<time>-throughput."""


def throughput(arguments: Sequence[str], program: str) -> None:
    """Measure, print a table, and write the reports."""
    words, rest = split_own(ThroughputOptions, arguments)
    options = parse(ThroughputOptions, words, program)
    if min(options.warmup_steps, options.windows - 1, options.window_steps - 1) < 0:
        raise ConfigError("--warmup-steps cannot be negative, --windows and --window-steps are 1 at least")
    chosen = combinations(rest, every=options.all)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (len(chosen) > 1 or options.scaling):
        raise ConfigError("several processes measure one combination at a time, and no --scaling")
    folder = _folder(options.out)
    plan = Windows(options.warmup_steps, options.windows, options.window_steps)
    rows: list[dict[str, Any]] = []
    refused: list[Refused] = []
    configs: list[RunConfig] = []
    growth: list[Curve] = []

    def report() -> None:
        if os.environ.get("RANK", "0") == "0":
            folder.mkdir(parents=True, exist_ok=True)
            write_reports(folder, rows, refused, machine(), growth)

    for number, each in enumerate(chosen, start=1):
        if len(chosen) > 1:
            print(f"[{number}/{len(chosen)}] {each.name}", file=sys.stderr)
        try:
            config = _config(each, program, folder)
            rows.append(_measured(config, plan, apart=len(chosen) > 1))
            configs.append(config)
        except Exception as error:
            if len(chosen) == 1:
                raise
            why = str(error)
            if not isinstance(error, BeniError):  # a defect of a part, whose author needs all of it
                traceback.print_exception(error)
                why = f"{type(error).__name__}: {first_line(error)}"
            refused.append(Refused(each.name, why))
            print(f"refused: {why}", file=sys.stderr)
        report()  # what has been measured is not lost, whatever comes
    if os.environ.get("RANK", "0") != "0":
        return
    if not rows:
        raise ConfigError(f"no combination could be measured; {folder / 'report.md'} says why")
    if options.scaling:
        growth += curves(replace(configs[0], run=replace(configs[0].run, feature_cache="")))  # it draws its pictures
        report()
    print(terminal(rows))
    print("\n".join(["", *(row["regime_why"] for row in rows if len(rows) == 1), *map(told, growth)]))
    print(f"wrote {folder / 'report.html'}, report.md and report.json")


def _folder(out: str) -> Path:
    """The folder for the reports.

    Raises:
        ConfigError: it is a file, or the folder of a run.
    """
    folder = Path(out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-throughput")
    if folder.is_file() or (folder / "config.json").exists():
        what = "is a file" if folder.is_file() else "holds a run"
        raise ConfigError(f"--out {folder} {what}: choose another folder for the reports")
    return folder


def _config(chosen: Combination, program: str, folder: Path) -> RunConfig:
    """The run of a combination; its folder is one that nothing is kept in."""
    config = parse_run(chosen.words, program, others=[SWEEP])
    if config.run.resume != "never" or config.run.dry_run or config.run.wandb:
        raise ConfigError("--resume, --dry-run and --wandb are about whole runs; leave them out")
    return replace(config, run=replace(config.run, out=str(folder)))


def _measured(config: RunConfig, plan: Windows, apart: bool) -> dict[str, Any]:
    """A row; `apart` in a process of its own, whose memory is nobody else's.

    Raises:
        ConfigError: that process was killed.
    """
    if not apart:
        return measure(config, plan)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, config, plan).result()
        except BrokenProcessPool as error:
            raise ConfigError("the process that measured it was killed: often memory has run out") from error
