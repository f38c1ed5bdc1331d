"""Streams: sources that are read in order, a block at a time.

Of a run with a stream in it an epoch is a block: the next samples of every stream and of every other source, in their
shares. They are shuffled and packed as the samples of an epoch are, so which samples meet is again a function of the
data and the seed alone. Where a run stands is where each stream stood when the block began, and the step in the block.

Every training process reads the whole stream, in a process of its own, and gives its share of the rows to its data
workers; images are decoded there alone.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from typing import Any

from torch.utils.data import IterableDataset

from beni.config import BatchConfig
from beni.data.batch import PackedBatch
from beni.data.document import Composer
from beni.data.loader import Feed, Rows, Trees, loader
from beni.data.plan import Lengths, Place, Plan, cycled
from beni.errors import BeniError, DataError
from beni.interfaces import Stream
from beni.sample import Sample

AHEAD = 64
"""Steps that are read before they are asked for: reading a block must not hold training up."""
Task = tuple[int, Trees, tuple[tuple[str, str], ...]]
"""Number of the block, the samples of a row, and what cannot be trained on in the block (told with its first row)."""


@dataclass(frozen=True, slots=True)
class Block:
    """The samples between two positions of the streams, planned."""

    number: int
    rows: Rows
    """Its only epoch is that of the block's number."""
    begins: tuple[Any, ...]
    """Position of each source before it; None of one that is no stream."""
    ends: tuple[Any, ...]
    bad: tuple[tuple[str, str], ...]
    """(id, reason) of samples of streams that cannot be trained on."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What a block has of a source."""

    samples: Sequence[Sample]
    lengths: Lengths
    end: Any = None
    """Position of a stream behind it."""
    lapped: bool = False
    """Whether a stream ended, and began again."""


class Blocks(Feed):
    """A mixture of streams and other sources, block by block.

    Args:
        sources: at least one of them is a stream.
        quotas: how many samples of each a block has.
        composer: makes documents.
        batch: budgets of a row, and the order.
        seed, augment: of the order, and of what is done to images.

    Raises:
        DataError: a source that is no stream has nothing to train on.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Sample] | Stream],
        quotas: Sequence[int],
        composer: Composer,
        batch: BatchConfig,
        seed: int = 0,
        augment: float = 0.0,
    ) -> None:
        super().__init__(composer, seed, augment)
        self.sources = list(sources)
        self.quotas = list(quotas)
        self.batch = batch
        self.lengths = [None if isinstance(source, Stream) else Lengths(source, composer) for source in sources]
        for lengths, quota in zip(self.lengths, quotas, strict=True):
            if quota and lengths and not len(lengths.usable):
                why = lengths.bad[0][1] if lengths.bad else "it is empty"
                raise DataError(f"a source beside a stream has nothing to train on: {why}")

    @property
    def rows_per_step(self) -> int:
        return self.batch.rows

    def __getitem__(self, task: Task) -> PackedBatch:
        number, trees, bad = task
        batch = self.pack(trees, number)
        batch.stats = replace(batch.stats, bad=(*bad, *batch.stats.bad))
        return batch

    @property
    def unusable(self) -> list[tuple[str, str]]:
        return [pair for lengths in self.lengths if lengths for pair in lengths.bad]

    def block(self, number: int, begins: Sequence[Any] = ()) -> Block:
        """Read a block; where nothing in it can be trained on, what comes behind that.

        Args:
            number: of the block, from 0.
            begins: where the streams stand; empty: at their beginning.

        Raises:
            DataError: a stream is empty or cannot be read, or nothing in it can be trained on.
        """
        begins = ends = tuple(begins) or (None,) * len(self.sources)
        bad: list[tuple[str, str]] = []
        while True:
            parts = [self._part(index, number, position) for index, position in enumerate(ends)]
            ends = tuple(part.end for part in parts)
            bad += [
                pair for part, known in zip(parts, self.lengths, strict=True) if not known for pair in part.lengths.bad
            ]
            if any(len(part.lengths.usable) for part in parts):
                break
            if any(part.lapped for part in parts):
                raise DataError(f"a stream has nothing to train on, from its beginning to its end: {bad[0][1]}")
        plan = Plan([part.lengths for part in parts], (), self.batch, self.seed)
        rows = Rows([part.samples for part in parts], plan, self.composer, self.seed, self.augment)
        return Block(number, rows, begins, ends, tuple(bad))

    def _part(self, index: int, number: int, position: Any) -> _Part:
        source, quota, known = self.sources[index], self.quotas[index], self.lengths[index]
        if isinstance(source, Stream):
            samples, end, lapped = _read(source, position, quota)
            return _Part(samples, Lengths(samples, self.composer), end, lapped)
        assert known is not None
        chosen = cycled(known.usable, quota, number, (self.seed, index))
        return _Part([source[at] for at in chosen], known.of(chosen))

    def walk(
        self, place: Place, steps: int, rank: int, world: int, apart: bool
    ) -> Iterator[tuple[Place, Sequence[Task]]]:
        """From a place on; streams are read in another process, unless nothing is to be done apart.

        Raises:
            DataError: as `block`.
        """
        before = multiprocessing.active_children()
        items = iter(loader(_Steps(self, place, steps, rank, world), int(apart), AHEAD))
        reading = [process for process in multiprocessing.active_children() if process not in before]
        try:
            for item in items:
                if isinstance(item, BeniError):
                    raise item
                yield item
        finally:
            del items  # torch asks the process to end, and waits for some seconds
            for process in reading:
                process.kill()  # which may wait for a network
                process.join()


class _Steps(IterableDataset[Any]):
    """What `Blocks.walk` yields; an error comes as the last item, because torch would hide what it says."""

    def __init__(self, blocks: Blocks, place: Place, steps: int, rank: int, world: int) -> None:
        self.blocks, self.place, self.steps, self.rank, self.world = blocks, place, steps, rank, world

    def __iter__(self) -> Iterator[tuple[Place, Sequence[Task]] | BeniError]:
        try:
            yield from islice(self._endless(), self.steps)
        except BeniError as error:
            yield error

    def _endless(self) -> Iterator[tuple[Place, Sequence[Task]]]:
        number, first, begins = self.place
        while True:
            block = self.blocks.block(number, begins)
            plan = block.rows.plan
            for step in range(first, plan.steps(number)):
                told = ((),) if step else (block.bad,)
                rows = zip_longest(plan.step(number, step), told, fillvalue=())
                tasks = [(number, block.rows.trees(row), bad) for row, bad in rows]
                yield Place(number, step + 1, block.begins), tasks[self.rank :: self.world]
            number, first, begins = number + 1, 0, block.ends


def _read(stream: Stream, position: Any, count: int) -> tuple[list[Sample], Any, bool]:
    """The next samples of a stream without end, where it is then, and whether it began again behind its last one."""
    samples: list[Sample] = []
    lapped = False
    while missing := count - len(samples):
        reading = stream.read(position, missing)
        if not reading.samples and position is None:
            raise DataError("a stream holds nothing at all")
        samples += reading.samples
        ended = len(reading.samples) < missing
        position, lapped = (None, True) if ended else (reading.position, lapped)
    return samples, position, lapped
