"""How the time of a step grows: with documents, images, the length of a text, the side of images, the latents.

Rows are made of drawn pictures and repeated words, one row per step, and go through the training loop. An exponent is
the slope of a line through the logarithms of times and amounts; what is declared as operations predicts the time if a
line through times and operations does.
"""

import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from PIL import Image

from beni.config import Part, RunConfig
from beni.data.batch import PackedBatch, pack
from beni.data.document import Composer
from beni.data.plan import Place
from beni.errors import ConfigError, IncompatiblePartsError
from beni.flops.figures import total as operations
from beni.processes import Processes, processes
from beni.sample import ImageRef, Sample, Turn
from beni.training.checkpoint import Position
from beni.training.loop import StepReport, train_loop
from beni.training.prepare import prepare
from beni.training.ready import ready

WARMUP, TIMED = 2, 5
"""Steps of each row."""
LENGTH = 96
"""Tokens of a document where its length is not what varies."""
LATENTS = ("num_latents", "num_queries")
"""What connectors call the number of their learned queries."""


@dataclass(frozen=True, slots=True)
class Point:
    """One row."""

    amount: int
    seconds: float
    """Of a step, median."""
    flops: float
    """Of the model, forward and backward."""
    positions: int = 0
    """Of the language model."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Times over amounts of one thing."""

    of: str
    points: tuple[Point, ...]

    @property
    def exponent(self) -> float:
        """Of the time in the amount."""
        amounts, seconds = np.log([[p.amount, p.seconds] for p in self.points]).T
        return float(np.polyfit(amounts, seconds, 1)[0])

    @property
    def predicted(self) -> tuple[float, ...]:
        """Seconds, by a line through operations and times."""
        flops, seconds = np.array([[p.flops, p.seconds] for p in self.points]).T
        return tuple(np.polyval(np.polyfit(flops, seconds, 1), flops).tolist())

    @property
    def off(self) -> float:
        """Largest relative error of these."""
        return max(abs(told / p.seconds - 1) for told, p in zip(self.predicted, self.points, strict=True))


def curves(config: RunConfig) -> list[Curve]:
    """All that apply to a model; measured by one process."""
    with processes(config.run) as procs:
        rows: dict[str, dict[int, Callable[[Composer], PackedBatch]]] = {
            "documents": {n: _row_of(documents=n) for n in (1, 2, 4, 8, 16)},
            "images": {n: _row_of(documents=n, images=1) for n in (1, 2, 4, 8, 16)},
        }
        texts = {n: _row_of(length=n) for n in (64, 128, 256, 512, 1024)}
        found = [Curve(of, tuple(_times(config, procs, made))) for of, made in rows.items()]
        lengths = tuple(replace(point, amount=point.positions) for point in _times(config, procs, texts))
        found.append(Curve("positions of a text", lengths))
        for of, variants in (("image side", _sizes(config)), ("latents", _latents(config))):
            points = [point for amount, variant in variants for point in _variant(variant, procs, amount)]
            if len(points) > 2:
                found.append(Curve(of, tuple(points)))
        return found


def _variant(config: RunConfig, procs: Processes, amount: int) -> Iterator[Point]:
    """Of another model, which may be refused: a grid that a connector cannot divide."""
    try:
        yield from _times(config, procs, {amount: _row_of(documents=4, images=1)})
    except (ConfigError, IncompatiblePartsError):
        return


def _times(config: RunConfig, procs: Processes, made: dict[int, Callable[[Composer], PackedBatch]]) -> Iterator[Point]:
    """Steps over each of some rows, by one model."""
    run = prepare(config, procs, None)
    start = ready(run)
    model, optimizer, meter = run.built.model, start.optimizer, start.counted()
    longest = getattr(model.llm.config, "max_position_embeddings", None) or math.inf
    for amount, make in made.items():
        row = make(run.built.composer)
        if max(segment.length for segment in row.segments) > longest:
            continue
        clock: list[float] = []

        def after_step(step: StepReport, clock: list[float] = clock) -> None:
            if procs.device.type == "cuda":
                torch.cuda.synchronize()
            clock.append(time.perf_counter())

        total = WARMUP + TIMED
        steps = iter([(Place(0, number), [row]) for number in range(total)])
        train_loop(model, optimizer, steps, Position(), total, config.optim, procs, after_step)
        flops = operations(meter.row(row).full).model
        yield Point(amount, median(np.diff(clock)[WARMUP - 1 :].tolist()), flops, row.stats.tokens)


def _row_of(documents: int = 1, images: int = 0, length: int = LENGTH) -> Callable[[Composer], PackedBatch]:
    """Makes a row of documents, each with so many pictures of its own, its text filled up to a length."""

    def make(composer: Composer) -> PackedBatch:
        free = replace(composer, max_tokens=0)
        filled = [_document(free, number, images, length) for number in range(documents)]
        return pack([[free.compose(sample)] for sample in filled], free)

    return make


def _document(composer: Composer, number: int, images: int, length: int) -> Sample:
    """A question with a long answer; the pictures' tokens come on top of the length."""
    shown = tuple(_picture(number * images + index) for index in range(images))

    def answered(words: int) -> Sample:
        turns = (Turn("user", (*range(images), "say it")), Turn("assistant", ("a " * words,)))
        return Sample(f"document {number}", turns, shown)

    without = replace(answered(1), turns=(Turn("user", ("say it",)), Turn("assistant", ("a",))), images=())
    return answered(max(1, length - len(composer.compose(without))))


def _picture(number: int) -> ImageRef:
    """Of noise, unlike any other."""
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return ImageRef(data=file.getvalue())


def _sizes(config: RunConfig) -> Sequence[tuple[int, RunConfig]]:
    """Variants in the side of the encoders' input, where all of them have an option for it."""
    if not all(hasattr(part.config, "size") for part in config.encoders.values()):
        return []
    native = {key: part.load().describe(part.config).size.width for key, part in config.encoders.items()}  # type: ignore[attr-defined]
    first = next(iter(native.values()))
    found = []
    for times in (0.5, 1, 1.5, 2):
        with suppress(ConfigError):  # encoders cut their inputs into squares of their own
            sized = {key: _with(part, size=round(native[key] * times)) for key, part in config.encoders.items()}
            found.append((round(first * times), replace(config, encoders=sized)))
    return found


def _latents(config: RunConfig) -> Sequence[tuple[int, RunConfig]]:
    """Variants in the number of the connector's learned queries, if it has any."""
    for name in LATENTS:
        if hasattr(config.connector.config, name):
            numbers = (8, 16, 32, 64, 128)
            return [(n, replace(config, connector=_with(config.connector, **{name: n}))) for n in numbers]
    return []


def _with(part: Part, **options: int) -> Part:
    return Part(part.plugin, dataclasses.replace(part.config, **options))
