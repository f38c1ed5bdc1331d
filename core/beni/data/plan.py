"""Which samples go into which row of which step: deterministic, global, seekable.

The plan is a function of (data, seed, epoch) alone. Every process computes all of it and takes its share, so the same
samples are seen in the same order whatever the number of processes or workers. Its state is two integers.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from beni.config import BatchConfig
from beni.data.document import IGNORE, Composer
from beni.data.order import ORDERS
from beni.errors import DataError
from beni.sample import Sample


class Place(NamedTuple):
    """Where in the plan a run stands; plain JSON values."""

    epoch: int = 0
    step: int = 0
    """Of the epoch."""
    streams: Sequence[Any] = ()
    """Where each source that is a stream stood when the epoch began; None for one that is none."""


def shares(weights: Sequence[float], total: int) -> list[int]:
    """So many samples of each source, in proportion to weights; at least one of each that has any."""
    share = np.array(weights) / sum(weights)
    return np.maximum(np.rint(share * total), np.array(share > 0)).astype(int).tolist()


def cycled(usable: np.ndarray, count: int, epoch: int, seed: tuple[int, int] | None) -> list[int]:
    """What an epoch takes of a source that it cycles through: the next `count` of its passes, each shuffled by itself.

    Args:
        usable: indices of the source's samples.
        count: how many every epoch takes.
        epoch: which one, from 0.
        seed: of the passes; None leaves them in order.
    """
    drawn: list[int] = []
    begin, end = epoch * count, (epoch + 1) * count
    while begin < end:
        lap, offset = divmod(begin, len(usable))
        order = np.arange(len(usable)) if seed is None else np.random.default_rng((*seed, lap)).permutation(len(usable))
        taken = order[offset : offset + end - begin]
        drawn += usable[taken].tolist()
        begin += len(taken)
    return drawn


@dataclass(frozen=True, slots=True)
class Member:
    """One sample of one source."""

    source: int
    index: int


Tree = tuple[Member, ...]
"""Samples that share their images and the beginning of their text."""
Row = tuple[Tree, ...]


class Lengths:
    """What each sample of a source costs, known before any image is decoded.

    Args:
        samples: the source.
        composer: makes documents of them.

    `bad` lists (sample id, reason) of samples that cannot be documents; they are never planned.
    """

    def __init__(self, samples: Sequence[Sample], composer: Composer) -> None:
        table = np.zeros((len(samples), 7), dtype=np.int64)
        self.bad: list[tuple[str, str]] = []
        keep = []
        for index in range(len(samples)):
            sample = samples[index]
            try:
                document = composer.compose(sample)
            except DataError as error:
                self.bad.append((sample.id, str(error)))
                continue
            crops = max((sum(len(i.layout.crops[k]) for i in document.images) for k in composer.encoders), default=0)
            memory = sum(sum(i.counts) for i in document.images)
            targets = int((document.labels[1:] != IGNORE).sum())
            images = len(document.images)
            table[index] = len(document), document.head, document.head_key, images, crops, memory, targets
            keep.append(index)
        self.usable = np.array(keep, dtype=np.int64)
        self._take(table)

    def of(self, chosen: Sequence[int]) -> "Lengths":
        """Of chosen samples of the source, which are then counted from 0; all of them are usable."""
        part = copy(self)
        part.bad, part.usable = [], np.arange(len(chosen))
        part._take(self.table[np.asarray(chosen, dtype=np.int64)])
        return part

    def _take(self, table: np.ndarray) -> None:
        self.table = table
        self.total, self.head, self.head_key, self.images, self.crops, self.memory, self.targets = table.T


class Plan:
    """Rows of every epoch.

    Args:
        lengths: one per source.
        weights: relative number of samples drawn per source and epoch; empty: every sample once.
        batch: budgets of a row, and the order.
        seed: of the order.
        shuffle: False keeps the order of the data, whatever `batch.order` says (evaluation).

    Raises:
        DataError: there is nothing to train on.
    """

    def __init__(
        self,
        lengths: Sequence[Lengths],
        weights: Sequence[float],
        batch: BatchConfig,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.lengths = list(lengths)
        self.weights = list(weights)
        self.batch = batch
        self.seed = seed
        self.shuffle = shuffle
        if not sum(len(source.usable) for source in lengths):
            reason = next((f": {source.bad[0][1]}" for source in lengths if source.bad), "")
            raise DataError(f"the data holds no sample with anything to learn{reason}")
        self.rows = lru_cache(maxsize=2)(self._rows)

    def __reduce__(self) -> tuple[Any, ...]:  # the cache stays behind when a worker is started
        return Plan, (self.lengths, self.weights, self.batch, self.seed, self.shuffle)

    @property
    def samples(self) -> int:
        """How many every epoch has."""
        return sum(self._quotas())

    def steps(self, epoch: int) -> int:
        """Optimizer steps of an epoch; the last one may hold fewer rows."""
        return -(-len(self.rows(epoch)) // self.batch.rows)

    def step(self, epoch: int, step: int) -> list[Row]:
        """The rows of a step, always `batch.rows` of them; behind the end of the data they are empty."""
        rows = self.rows(epoch)[step * self.batch.rows : (step + 1) * self.batch.rows]
        return [*rows, *((),) * (self.batch.rows - len(rows))]

    def walk(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        """(epoch, step) from a place on, without end."""
        while True:
            for position in range(step, self.steps(epoch)):
                yield epoch, position
            epoch, step = epoch + 1, 0

    def _rows(self, epoch: int) -> list[Row]:
        rng = np.random.default_rng((self.seed, epoch))
        members = self._draw(epoch)
        if self.shuffle:
            members = [members[i] for i in rng.permutation(len(members))]
        trees = self._group(members)
        costs = np.array([self._cost(tree) for tree in trees], dtype=np.int64).reshape(-1, 4)
        batch = self.batch
        budget = np.array([batch.row_tokens, batch.row_images, batch.row_crops, batch.row_memory])
        arrange = ORDERS[batch.order if self.shuffle else "shuffled"]  # which leaves trees as they come
        return [tuple(trees[number] for number in row) for row in arrange(costs, budget, batch.rows, rng)]

    def _draw(self, epoch: int) -> list[Member]:
        """This epoch's samples: source after source, each cycling through its own shuffled passes."""
        members = []
        for number, (source, quota) in enumerate(zip(self.lengths, self._quotas(), strict=True)):
            drawn = cycled(source.usable, quota, epoch, (self.seed, number) if self.shuffle else None)
            members += [Member(number, index) for index in drawn]
        return members

    def _quotas(self) -> list[int]:
        """How many samples every epoch has of each source."""
        sizes = [len(source.usable) for source in self.lengths]
        wanted = shares(self.weights, sum(sizes)) if self.weights else sizes
        return [quota if size else 0 for quota, size in zip(wanted, sizes, strict=True)]

    def _group(self, members: Sequence[Member]) -> list[Tree]:
        """Put samples that share their head into one tree, as many as a row holds."""
        groups: dict[tuple[int, int], list[Member]] = {}
        for order, member in enumerate(members):
            key = int(self.lengths[member.source].head_key[member.index])
            groups.setdefault((key, 0 if key else order), []).append(member)
        trees: list[Tree] = []
        for group in groups.values():
            tree: list[Member] = []
            tokens = 0
            for member in group:
                source = self.lengths[member.source]
                tail = int(source.total[member.index] - source.head[member.index])
                if tree and tokens + tail > self.batch.row_tokens:
                    trees.append(tuple(tree))
                    tree = []
                tokens = tokens + tail if tree else int(source.total[member.index])
                tree.append(member)
            trees.append(tuple(tree))
        return trees

    def _cost(self, tree: Tree) -> tuple[int, ...]:
        """Tokens, images, crops and visual tokens of a tree."""
        first, source = tree[0], self.lengths[tree[0].source]
        head = int(source.head[first.index]) if len(tree) > 1 else 0
        tokens = head + sum(int(self.lengths[m.source].total[m.index]) - head for m in tree)
        return tokens, *(int(cost[first.index]) for cost in (source.images, source.crops, source.memory))
