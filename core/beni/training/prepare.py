"""Everything that training needs, built and loaded, nothing trained yet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from beni.config import RunConfig
from beni.data.loader import Rows
from beni.data.plan import Lengths, Plan
from beni.data.spec import parse, training, validation
from beni.errors import ConfigError, DataError
from beni.eval.held_out import HeldOut
from beni.model.build import Built
from beni.processes import Processes
from beni.sample import Sample
from beni.training import freeze
from beni.training.adapters import Adapters, add_adapters
from beni.training.loading import load_once
from beni.training.outputs import open_folder
from beni.training.quantize import Quantized, check, quantize


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that training needs, built and loaded, nothing trained yet."""

    config: RunConfig
    processes: Processes
    folder: Path
    built: Built
    rows: Rows
    quantized: Quantized | None
    adapters: list[Adapters]
    table: list[freeze.FreezeRow]
    total: int
    """Optimizer steps of the whole run."""


def prepare(config: RunConfig, procs: Processes, resumed_from: Path | None) -> Run:
    """Load the data, build the model, plan the batches, decide what is trained."""
    procs.doing("preparing")
    rows, world = config.batch.rows, procs.world
    if rows % world:
        raise ConfigError(f"--rows {rows} cannot be shared by {world} processes: choose a multiple of {world}")
    check(config.peft, config.optim)
    sources = training(config.data.data)
    for spec in config.data.eval_data:
        parse(spec)  # what is wrong with it is told before training, not after
    built = load_once(config, _texts(sources), procs)
    plan = _plan(config, built, sources)
    quantized = quantize(built.model, config.peft.quant, procs.device)
    adapters = add_adapters(built.model, config.peft)
    table = freeze.freeze_table(built.model, config.optim, {k: v.origin for k, v in built.loaded.items()})
    if not any(row.trainable for row in table):
        raise ConfigError("nothing is trained: every part was loaded or quantized; name some with --train")
    if config.run.select == "best" and not validation(config.data.data):
        raise ConfigError("--select best compares losses on a validation split, and no source has one")
    procs.barrier()  # preparing takes as long as it takes
    folder = Path(procs.from_main(str(open_folder(config, resumed_from)) if procs.is_main else ""))
    data = Rows(sources, plan, built.composer, config.run.seed, config.data.augment)
    total = config.optim.steps or _steps(plan, config.optim.epochs)
    return Run(config, procs, folder, built, data, quantized, adapters, table, total)


def _plan(config: RunConfig, built: Built, sources: Sequence[Sequence[Sample]]) -> Plan:
    weights = config.data.weights
    if weights and (len(weights) != len(sources) or min(weights) < 0 or not sum(weights)):
        raise ConfigError(
            f"--weights needs one number ≥ 0 per source: there are {len(sources)} sources, {len(weights)} weights"
        )
    lengths = [Lengths(samples, built.composer) for samples in sources]
    bad = [pair for source in lengths for pair in source.bad]
    if config.data.on_bad_sample == "error" and bad:
        raise DataError(bad[0][1])
    return Plan(lengths, weights, config.batch, config.run.seed)


def held_out(run: Run) -> HeldOut | None:
    """The validation splits, or None if no source has one."""
    sources = validation(run.config.data.data)
    return HeldOut.of(sources, run.built.composer, run.config.batch) if sources else None


def _steps(plan: Plan, epochs: float) -> int:
    """Optimizer steps of so many passes over the data."""
    whole, part = int(epochs), epochs - int(epochs)
    return max(1, sum(plan.steps(e) for e in range(whole)) + (round(part * plan.steps(whole)) if part else 0))


def _texts(sources: Sequence[Sequence[Sample]]) -> Iterator[str]:
    for samples in sources:
        for index in range(len(samples)):
            for turn in samples[index].turns:
                yield from (part for part in turn.content if isinstance(part, str))
