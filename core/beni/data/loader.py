"""Feeds a process its rows: composes documents and loads images in worker processes, in the plan's order."""

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from beni.data.augment import jitter
from beni.data.batch import PackedBatch, Prepare, pack
from beni.data.document import Composer
from beni.data.plan import Plan, Row
from beni.sample import Sample

RowIndex = tuple[int, int, int]
"""Epoch, step, number of the row in the step."""


class Rows(Dataset[PackedBatch]):
    """Every row of every step, by index; what a data worker holds."""

    def __init__(
        self,
        sources: Sequence[Sequence[Sample]],
        plan: Plan,
        composer: Composer,
        seed: int = 0,
        augment: float = 0.0,
    ) -> None:
        self.sources = list(sources)
        self.plan = plan
        self.composer = composer
        self.seed = seed
        self.augment = augment

    def __getitem__(self, index: RowIndex) -> PackedBatch:
        epoch, step, number = index
        return self.pack(self.plan.step(epoch, step)[number], epoch)

    def pack(self, row: Row, epoch: int) -> PackedBatch:
        """Compose and pack one row; images are changed the same way wherever and whenever this is done."""
        trees = [[self.composer.compose(self.sources[m.source][m.index]) for m in tree] for tree in row]
        return pack(trees, self.composer, self._prepare(epoch))

    def _prepare(self, epoch: int) -> Prepare | None:
        if not self.augment:
            return None

        def prepare(image: Image.Image, key: str | bytes) -> Image.Image:
            digest = hashlib.blake2b(key if isinstance(key, bytes) else key.encode(), digest_size=8).digest()
            rng = np.random.default_rng((self.seed, epoch, int.from_bytes(digest, "little")))
            return jitter(image, self.augment, rng)

        return prepare


def batches(
    rows: Rows, epoch: int, step: int, steps: int, workers: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, int, list[PackedBatch]]]:
    """One process's share of the plan from a position on.

    Args:
        rows: the data.
        epoch, step: where to begin.
        steps: how many steps.
        workers: processes that load; 0 loads in this one.
        rank, world: this process takes rows rank, rank + world, … of each step.

    Yields:
        The position *behind* the step, as (epoch, step), and the step's packed rows of this process.
    """
    per_step = rows.plan.batch.rows // world

    def indices() -> Iterator[RowIndex]:
        walk = rows.plan.walk(epoch, step)
        for _ in range(steps):
            at = next(walk)
            for number in range(rank, rank + per_step * world, world):
                yield (*at, number)

    loader = DataLoader(
        rows,
        batch_size=None,
        sampler=_Once(indices),
        num_workers=workers,
        prefetch_factor=2 * per_step if workers else None,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_outlive_sigterm if workers else None,
        generator=torch.Generator(),  # of its own: torch would draw from the one that dropout uses
    )
    stream = iter(loader)
    walk = rows.plan.walk(epoch, step)
    next(walk)
    for _ in range(steps):
        yield (*next(walk), [next(stream) for _ in range(per_step)])


def _outlive_sigterm(worker: int) -> None:
    """A scheduler sends SIGTERM to everybody; the training process needs its workers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Once:
    """An iterable over indices, made anew for each pass."""

    def __init__(self, make: Callable[[], Iterator[RowIndex]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[RowIndex]:
        return self.make()
