"""Everything that training needs, built and loaded, nothing trained yet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from beni.config import DataConfig, RunConfig
from beni.data.blocks import Blocks
from beni.data.document import Composer
from beni.data.features import FeatureStore
from beni.data.loader import Feed, Rows
from beni.data.plan import Lengths, Plan, shares
from beni.data.spec import judged, parse, training, validation
from beni.errors import ConfigError, DataError
from beni.eval import metrics
from beni.eval.choice import offered
from beni.eval.held_out import HeldOut
from beni.eval.judge import subset
from beni.interfaces import Stream
from beni.model.build import Built
from beni.processes import Processes
from beni.sample import Sample
from beni.training import committed, compiled, features, freeze
from beni.training.adapters import Adapters, add_adapters
from beni.training.budget import steps_of
from beni.training.loading import load_once
from beni.training.outputs import open_folder
from beni.training.precision import precision
from beni.training.quantize import Quantized, check, quantize


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that training needs, built and loaded, nothing trained yet."""

    config: RunConfig
    processes: Processes
    dtype: torch.dtype
    """Of the computation; parameters are kept in fp32."""
    folder: Path
    built: Built
    rows: Rows
    """Of the data; where there are streams, of their first block."""
    feed: Feed
    """What training is fed from: the rows, or all blocks."""
    cached: features.Cached | None
    """Features of all images, if encoders are not to run."""
    quantized: Quantized | None
    adapters: list[Adapters]
    table: list[freeze.FreezeRow]
    total: int
    """Optimizer steps of the whole run."""

    @property
    def features(self) -> FeatureStore | None:
        """What has the features of all images, if encoders are not to run."""
        return None if self.cached is None else self.cached.store


def prepare(config: RunConfig, procs: Processes, resumed_from: Path | None, judging: bool = False) -> Run:
    """Load the data, build the model, plan the batches, decide what is trained.

    Args:
        resumed_from: the checkpoint that will be continued.
        judging: whether validation and judging follow, so that the feature cache needs their images.

    Raises:
        BeniError: a user's mistake.
    """
    procs.doing("preparing")
    world = procs.world
    if config.batch.rows % world:
        raise ConfigError(
            f"--rows {config.batch.rows} cannot be shared by {world} processes: choose a multiple of {world}"
        )
    check(config.peft, config.optim)
    compiled.check(config.run, procs.device)
    sources = training(config.data.data)
    for spec in config.data.eval_data:
        parse(spec)  # what is wrong with it is told before anything is loaded
    quotas = _quotas(config, sources)
    built = load_once(config, _texts(sources, quotas), procs)
    begun = None if resumed_from is None else committed.computed_in(resumed_from)
    dtype = precision(config.run.dtype, built.model, procs, begun)
    _check_judged(config.data, built.composer)
    rows, feed = _feed(config, built, sources, quotas)
    quantized = quantize(built.model, config.peft.quant, procs.device)
    adapters = add_adapters(built.model, config.peft)
    table = freeze.freeze_table(built.model, config.optim, {k: v.origin for k, v in built.loaded.items()})
    if not any(row.trainable for row in table):
        raise ConfigError("nothing is trained: every part was loaded or quantized; name some with --train")
    if config.run.select == "best" and not validation(config.data.data):
        raise ConfigError("--select best compares losses on a validation split, and no source has one")
    if config.run.feature_cache:
        features.check(config, table, streams=feed is not rows)
    total = steps_of(config, rows, feed is not rows, built.model, table)
    procs.barrier()  # preparing takes as long as it takes
    folder = Path(procs.from_main(str(open_folder(config, resumed_from)) if procs.is_main else ""))
    cached = None
    if config.run.feature_cache and not config.run.dry_run:
        cached = features.fill(config, built, rows, procs, dtype, judging)
        feed.features = cached.store
    return Run(config, procs, dtype, folder, built, rows, feed, cached, quantized, adapters, table, total)


def _check_judged(data: DataConfig, composer: Composer) -> None:
    """What is wrong with the items that will be judged is told before training, not after.

    Raises:
        DataError: an item that its metric cannot judge.
        ConfigError: a metric needs a package that is not installed.
    """
    chosen = judged(data.eval_data, data.data) if _special(data.eval_data or data.data) else {}
    for samples in chosen.values():
        items = subset(samples, data.eval_limit)
        metrics.check(items)
        for sample in items:
            offered(sample, composer)


def _special(specs: Sequence[str]) -> bool:
    return any(parse(text).metric != "exact" for text in specs)


def _quotas(config: RunConfig, sources: Sequence[Sequence[Sample] | Stream]) -> list[int]:
    """How many samples of each source a block has; none where no source is a stream.

    Raises:
        ConfigError: weights that do not fit the sources, or that streams need and do not have; a stream of a
            run that only `epochs` would end.
    """
    weights = config.data.weights
    if weights and (len(weights) != len(sources) or min(weights) < 0 or not sum(weights)):
        raise ConfigError(
            f"--weights needs one number ≥ 0 per source: there are {len(sources)} sources, {len(weights)} weights"
        )
    streams = [spec for spec, source in zip(config.data.data, sources, strict=True) if isinstance(source, Stream)]
    if not streams:
        return []
    if not config.optim.budgets:
        raise ConfigError(
            f"data '{streams[0]}' is a stream, of which nobody knows when it ends: say --steps, --samples or --flops"
        )
    if len(sources) > 1 and not weights:
        raise ConfigError(
            f"data '{streams[0]}' is a stream: say how often it is seen beside the others, with --weights"
        )
    return shares(weights or [1.0], config.data.stream_block)


def _feed(
    config: RunConfig, built: Built, sources: Sequence[Sequence[Sample] | Stream], quotas: Sequence[int]
) -> tuple[Rows, Feed]:
    """The rows of the data, or of the first block of it, and what training is fed from.

    Raises:
        DataError: there is nothing to train on; or something is that cannot be, and that is to be an error.
    """
    composer, batch, seed, augment = built.composer, config.batch, config.run.seed, config.data.augment
    feed: Feed
    if quotas:
        feed = blocks = Blocks(sources, quotas, composer, batch, seed, augment)
        rows = blocks.block(0).rows
    else:
        lists = [source for source in sources if not isinstance(source, Stream)]
        plan = Plan([Lengths(samples, composer) for samples in lists], config.data.weights, batch, seed)
        feed = rows = Rows(lists, plan, composer, seed, augment)
    if config.data.on_bad_sample == "error" and feed.unusable:
        raise DataError(feed.unusable[0][1])
    return rows, feed


def held_out(run: Run) -> HeldOut | None:
    """The validation splits, or None if no source has one."""
    sources = validation(run.config.data.data)
    return HeldOut.of(sources, run.built.composer, run.config.batch, run.features) if sources else None


def _texts(sources: Sequence[Sequence[Sample] | Stream], quotas: Sequence[int]) -> Iterator[str]:
    """What a vocabulary is learned from: all texts, of a stream those of the first block."""
    for number, source in enumerate(sources):
        count = quotas[number] if quotas else 0
        samples = (source.read(None, count).samples if count else []) if isinstance(source, Stream) else source
        for index in range(len(samples)):
            for turn in samples[index].turns:
                yield from (part for part in turn.content if isinstance(part, str))
