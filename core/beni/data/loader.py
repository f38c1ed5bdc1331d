"""Feeds a process its rows: composes documents and loads images in worker processes, in the plan's order."""

import hashlib
import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, pairwise
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from beni.data.augment import jitter
from beni.data.batch import PackedBatch, Prepare, pack
from beni.data.document import Composer
from beni.data.features import FeatureStore
from beni.data.plan import Place, Plan, Row
from beni.errors import BeniError, LostProcess
from beni.sample import Sample

RowIndex = tuple[int, int, int]
"""Epoch, step, number of the row in the step."""
Trees = Sequence[Sequence[Sample]]
"""What is packed into a row: samples by the head that they share."""
DYING_S = 1.0
"""How long a worker that broke its connection may take to end."""


class Feed(ABC):
    """What training is fed from: `walk` says what comes next, and `feed[task]` makes a row of it, in any process.

    Images are changed the same way wherever and whenever this is done.

    Args:
        composer: makes documents.
        seed, augment: of the changes of images, and how strong they are.
    """

    def __init__(self, composer: Composer, seed: int = 0, augment: float = 0.0) -> None:
        self.composer = composer
        self.seed = seed
        self.augment = augment
        self.features: FeatureStore | None = None
        """What has the features of all images, if they are not to be computed."""

    @property
    @abstractmethod
    def rows_per_step(self) -> int:
        """Of all processes together."""

    @property
    @abstractmethod
    def unusable(self) -> list[tuple[str, str]]:
        """(id, reason) of samples that are left out from the start."""

    @abstractmethod
    def walk(
        self, place: Place, steps: int, rank: int, world: int, apart: bool
    ) -> Iterator[tuple[Place, Sequence[Any]]]:
        """From a place on: the place behind each step, and a task for every row of it that is this process's.

        Args:
            place: where to begin.
            steps: how many.
            rank, world: this process takes rows rank, rank + world, … of each step.
            apart: whether it may have processes of its own.
        """

    @abstractmethod
    def __getitem__(self, task: Any) -> PackedBatch:
        """The row of a task."""

    def pack(self, trees: Trees, epoch: int) -> PackedBatch:
        """Compose and pack one row."""
        documents = [[self.composer.compose(sample) for sample in tree] for tree in trees]
        return pack(documents, self.composer, self._prepare(epoch), self.features)

    def _prepare(self, epoch: int) -> Prepare | None:
        if not self.augment:
            return None

        def prepare(image: Image.Image, key: str | bytes) -> Image.Image:
            digest = hashlib.blake2b(key if isinstance(key, bytes) else key.encode(), digest_size=8).digest()
            rng = np.random.default_rng((self.seed, epoch, int.from_bytes(digest, "little")))
            return jitter(image, self.augment, rng)

        return prepare


class Rows(Feed):
    """Every row of every step, by index; what a data worker holds."""

    def __init__(
        self,
        sources: Sequence[Sequence[Sample]],
        plan: Plan,
        composer: Composer,
        seed: int = 0,
        augment: float = 0.0,
    ) -> None:
        super().__init__(composer, seed, augment)
        self.sources = list(sources)
        self.plan = plan

    def __getitem__(self, index: RowIndex) -> PackedBatch:
        epoch, step, number = index
        return self.pack(self.trees(self.plan.step(epoch, step)[number]), epoch)

    @property
    def rows_per_step(self) -> int:
        return self.plan.batch.rows

    def trees(self, row: Row) -> Trees:
        """The samples of a row."""
        return [[self.sources[member.source][member.index] for member in tree] for tree in row]

    @property
    def unusable(self) -> list[tuple[str, str]]:
        return [pair for source in self.plan.lengths for pair in source.bad]

    def walk(
        self, place: Place, steps: int, rank: int, world: int, apart: bool
    ) -> Iterator[tuple[Place, Sequence[RowIndex]]]:
        for at, behind in islice(pairwise(self.plan.walk(place.epoch, place.step)), steps):
            yield Place(*behind), [(*at, number) for number in range(rank, self.rows_per_step, world)]


def batches(
    feed: Feed,
    place: Place,
    steps: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    started: list[BaseProcess] | None = None,
) -> Generator[tuple[Place, list[PackedBatch]], None, None]:
    """One process's share of what is trained on, from a place on.

    Args:
        feed: the data.
        place: where to begin.
        steps: how many steps.
        workers: processes that load; 0 loads in this one.
        rank, world: this process takes rows rank, rank + world, … of each step.
        started: takes up the workers' processes, for `worker_deaths_told`.

    Yields:
        The place *behind* the step, and the step's packed rows of this process.

    Raises:
        BeniError: of what cannot be read, behind all that can.
    """
    coming: deque[tuple[Place, int]] = deque()
    failed: list[BeniError] = []

    def tasks() -> Iterator[Any]:
        try:
            for behind, own in feed.walk(place, steps, rank, world, workers > 0):
                coming.append((behind, len(own)))
                yield from own
        except BeniError as error:  # it is ahead of the rows that are used
            failed.append(error)

    before = multiprocessing.active_children()
    rows = iter(loader(feed, workers, 2 * feed.rows_per_step // world, sampler=_Once(tasks)))
    if started is not None:
        started += [process for process in multiprocessing.active_children() if process not in before]
    while first := list(islice(rows, 1)):
        behind, number = coming.popleft()
        yield behind, [*first, *islice(rows, number - 1)]
    if failed:
        raise failed[0]


def loader(dataset: Any, workers: int, ahead: int, **options: Any) -> DataLoader[Any]:
    """What loads one item at a time, in this process or in forked ones.

    Args:
        dataset: gives the items.
        workers: processes that load; 0 loads in this one.
        ahead: items that each of them loads before they are asked for.
        options: further ones of torch's loader.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_outlive_a_stop if workers else None,
        generator=torch.Generator(),  # of its own: torch would draw from the one that dropout uses
        collate_fn=_unchanged,
        **options,
    )


def _unchanged(item: Any) -> Any:
    return item


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


def _outlive_a_stop(worker: int) -> None:
    """Schedulers and terminals tell everybody to stop; the training process needs its workers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Once:
    """An iterable over tasks, made anew for each pass."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()
