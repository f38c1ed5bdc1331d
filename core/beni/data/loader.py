"""Feeds a process its rows: composes documents and loads images in worker processes, in the plan's order."""

import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from beni.data.augment import jitter
from beni.data.batch import PackedBatch, Prepare, pack
from beni.data.document import Composer
from beni.data.plan import Plan, Row
from beni.errors import LostProcess
from beni.sample import Sample

RowIndex = tuple[int, int, int]
"""Epoch, step, number of the row in the step."""
DYING_S = 1.0
"""How long a worker that broke its connection may take to end."""


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
    rows: Rows,
    epoch: int,
    step: int,
    steps: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    started: list[BaseProcess] | None = None,
) -> Iterator[tuple[int, int, list[PackedBatch]]]:
    """One process's share of the plan from a position on.

    Args:
        rows: the data.
        epoch, step: where to begin.
        steps: how many steps.
        workers: processes that load; 0 loads in this one.
        rank, world: this process takes rows rank, rank + world, … of each step.
        started: takes up the workers' processes, for `worker_deaths_told`.

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
    before = multiprocessing.active_children()
    stream = iter(loader)
    if started is not None:
        started += [process for process in multiprocessing.active_children() if process not in before]
    walk = rows.plan.walk(epoch, step)
    next(walk)
    for _ in range(steps):
        yield (*next(walk), [next(stream) for _ in range(per_step)])


@contextmanager
def worker_deaths_told(started: Sequence[BaseProcess]) -> Iterator[None]:
    """Inside, rows of `batches` are used.

    torch tells of a dead worker by a RuntimeError, wherever the process just is; a row that it had not handed over
    whole breaks a connection.

    Raises:
        LostProcess: one of the workers has died.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        ending = {worker.sentinel: worker for worker in started}
        with suppress(RuntimeError):  # torch's, once more, when the worker is dead at last
            for sentinel in wait(list(ending), DYING_S):
                ending[sentinel].join()  # type: ignore[index]
        dead = [worker for worker in started if worker.exitcode]
        if not dead:
            raise
        code = dead[0].exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise LostProcess(
            f"a data worker (process {dead[0].pid}) {how}: often memory, or room in /dev/shm, has run out; have fewer "
            f"--workers, or 0 to load in the training process; --resume auto goes on from the newest checkpoint"
        ) from error


def _outlive_sigterm(worker: int) -> None:
    """A scheduler sends SIGTERM to everybody; the training process needs its workers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Once:
    """An iterable over indices, made anew for each pass."""

    def __init__(self, make: Callable[[], Iterator[RowIndex]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[RowIndex]:
        return self.make()
