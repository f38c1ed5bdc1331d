"""`beni throughput`: what combinations of parts cost to train."""

import os
import platform
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

import torch

from beni.bench.grid import Combination, combinations, spelled
from beni.bench.measure import Windows, measure
from beni.bench.page import Refused, terminal, told, write_reports
from beni.bench.scaling import Curve, curves
from beni.cli.options import parse, parse_run
from beni.config import RunConfig
from beni.errors import BeniError, ConfigError, first_line

DEFAULT = Windows()


@dataclass(frozen=True, slots=True)
class ThroughputOptions:
    """What combinations of parts cost to train: speed, operations, MFU, memory, and what a step spends its time on.

    All options of `beni train` are taken as well. Parts may be several: --connector mlp perceiver --fusion inline xattn
    measures four models; --encoder is repeated for that, since several encoders behind one are one model.
    """

    all: bool = False
    """Go through all installed connectors and fusions, but for a kind that is named."""
    warmup: int = DEFAULT.warmup
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
    options, rest = _own(arguments, program)
    if min(options.warmup, options.windows - 1, options.window_steps - 1) < 0:
        raise ConfigError("--warmup cannot be negative, --windows and --window-steps are 1 at least")
    chosen, others = combinations(rest, options.all)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (len(chosen) > 1 or options.scaling):
        raise ConfigError("several processes measure one combination at a time, and no --scaling")
    folder = _folder(options.out)
    plan = Windows(options.warmup, options.windows, options.window_steps)
    rows: list[dict[str, Any]] = []
    refused: list[Refused] = []
    configs: list[RunConfig] = []
    growth: list[Curve] = []

    def report() -> None:
        if os.environ.get("RANK", "0") == "0":
            folder.mkdir(parents=True, exist_ok=True)
            write_reports(folder, rows, refused, _machine(), growth)

    for number, each in enumerate(chosen, start=1):
        name = " ".join(spelled(each))
        if len(chosen) > 1:
            print(f"[{number}/{len(chosen)}] {name}", file=sys.stderr)
        try:
            config = _config(each, others, program, folder)
            rows.append(_measured(config, plan, apart=len(chosen) > 1))
            configs.append(config)
        except Exception as error:
            if len(chosen) == 1:
                raise
            why = str(error)
            if not isinstance(error, BeniError):  # a defect of a part, whose author needs all of it
                traceback.print_exception(error)
                why = f"{type(error).__name__}: {first_line(error)}"
            refused.append(Refused(name, why))
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


def _own(arguments: Sequence[str], program: str) -> tuple[ThroughputOptions, list[str]]:
    """The options of this command, and what is left for `beni train`."""
    names = [f"--{name.replace('_', '-')}" for name in ThroughputOptions.__dataclass_fields__]
    own: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("-h", "--help", "--all", "--no-all", "--scaling", "--no-scaling"):  # these take no value
            own.append(word)
        elif word.partition("=")[0].replace("_", "-") in names:
            own.append(word)
            if "=" not in word and (value := next(words, None)) is not None:
                own.append(value)
        else:
            rest.append(word)
    return parse(ThroughputOptions, own, program), rest


def _config(chosen: Combination, others: Sequence[str], program: str, folder: Path) -> RunConfig:
    """The run of a combination; its folder is one that nothing is kept in."""
    config = parse_run([*others, *spelled(chosen)], program)
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


def _machine() -> dict[str, Any]:
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return gpu | {
        "CPU": _cpu(),
        "cores": os.cpu_count(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
    }


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
