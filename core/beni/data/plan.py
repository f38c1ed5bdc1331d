"""Which samples go into which row of which step: deterministic, global, seekable.

The plan is a function of (data, seed, epoch) alone. Every process computes all of it and takes its share, so the same
samples are seen in the same order whatever the number of processes or workers. Its state is two integers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from beni.config import BatchConfig
from beni.data.document import IGNORE, Composer
from beni.data.order import ORDERS
from beni.errors import DataError
from beni.sample import Sample


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

    def steps(self, epoch: int) -> int:
        """Optimizer steps of an epoch; the last one may hold fewer rows."""
        return -(-len(self.rows(epoch)) // self.batch.rows)

    def step(self, epoch: int, step: int) -> list[Row]:
        """The rows of a step, always `batch.rows` of them; behind the end of the data they are empty."""
        rows = self.rows(epoch)[step * self.batch.rows : (step + 1) * self.batch.rows]
        return [*rows, *((),) * (self.batch.rows - len(rows))]

    def walk(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        """(epoch, step) from a position on, without end."""
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
        sizes = [len(source.usable) for source in self.lengths]
        if self.weights:
            share = np.array(self.weights) / sum(self.weights)
            quotas = np.maximum(np.rint(share * sum(sizes)), np.array(share > 0)).astype(int).tolist()
        else:
            quotas = sizes
        members = []
        for number, (source, size, quota) in enumerate(zip(self.lengths, sizes, quotas, strict=True)):
            for position in range(epoch * quota, (epoch + 1) * quota) if size else ():
                lap, offset = divmod(position, size)
                members.append(Member(number, int(source.usable[self._pass(number, lap, size)[offset]])))
        return members

    def _pass(self, source: int, lap: int, size: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(size)
        key = (source, lap)
        if getattr(self, "_pass_key", None) != key:  # consecutive positions ask for the same pass
            self._pass_key, self._pass_order = key, np.random.default_rng((self.seed, source, lap)).permutation(size)
        return self._pass_order

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
