"""Where attention happens in a packed row: index tensors, computed once per batch on the host.

A row is a sequence of *trees*: a root segment followed by its descendants, contiguous. Trees never see each other, so
attention runs tree by tree, batched over trees of similar length. Cross-attention uses the same trees: a text position
reads one contiguous slice of the flat visual memory.

These are plain classes, not dataclasses: FSDP rebuilds dataclasses it finds among a module's inputs.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from beni.types import Segment

Item = TypeVar("Item")

_STEPS_PER_OCTAVE = 8
"""Trees are padded to the next of this many lengths between powers of two: at most 12.5 % of a bucket is padding."""


class Bucket:
    """Trees of similar length, padded to the longest (L) by repeating position 0 of the row.

    `mask_B1LL` says which slots see which; None means causal, which holds when no tree has children. Padding stands
    behind every tree, so no real slot sees it.
    """

    def __init__(self, index_BL: Int[Tensor, "B L"], mask_B1LL: Bool[Tensor, "B 1 L L"] | None) -> None:
        self.index_BL = index_BL
        self.mask_B1LL = mask_B1LL

    def to(self, device: torch.device) -> "Bucket":
        mask = None if self.mask_B1LL is None else self.mask_B1LL.to(device, non_blocking=True)
        return Bucket(self.index_BL.to(device, non_blocking=True), mask)


class RowPlan:
    """Self-attention of one packed row: its buckets, and for each position its slot among all buckets' outputs."""

    def __init__(self, buckets: Sequence[Bucket], slot_T: Int[Tensor, " T"], positions_T: Int[Tensor, " T"]) -> None:
        self.buckets = tuple(buckets)
        self.slot_T = slot_T
        self.positions_T = positions_T
        self.index_S = torch.cat([bucket.index_BL.flatten() for bucket in buckets] or [slot_T])
        """The position in each slot of all buckets."""
        self._windowed: dict[int, tuple[Bucket, ...]] = {}

    def to(self, device: torch.device) -> "RowPlan":
        return RowPlan([b.to(device) for b in self.buckets], self.slot_T.to(device), self.positions_T.to(device))

    def within(self, window: int | None) -> tuple[Bucket, ...]:
        """The buckets under a sliding window: a position sees those less than `window` positions before it."""
        if window is None:
            return self.buckets
        if window not in self._windowed:
            self._windowed[window] = tuple(self._narrow(bucket, window) for bucket in self.buckets)
        return self._windowed[window]

    def _narrow(self, bucket: Bucket, window: int) -> Bucket:
        length = bucket.index_BL.shape[1]
        if length <= window:
            return bucket
        at_BL = self.positions_T[bucket.index_BL]
        near_B1LL = (at_BL[:, None, :, None] - at_BL[:, None, None, :] < window) | torch.eye(
            length, dtype=torch.bool, device=at_BL.device
        )
        causal = torch.ones(length, length, dtype=torch.bool, device=at_BL.device).tril()
        mask_B1LL = causal if bucket.mask_B1LL is None else bucket.mask_B1LL
        return Bucket(bucket.index_BL, mask_B1LL & near_B1LL)


class CrossPlan:
    """Cross-attention from flat text positions to slices of a flat visual memory.

    Each bucket is (text positions `index_BL`, memory positions `memory_BM`, `mask_B1LM`). `slot_T` points into the
    buckets' outputs followed by one zero row, where positions that see nothing point. `sees_T` tells the others from
    those. `last_B2` holds the span at the end of each tree (or padded row), which is what tokens decoded behind it see.
    """

    def __init__(
        self,
        buckets: Sequence[tuple[Tensor, Tensor, Tensor]],
        slot_T: Int[Tensor, " T"],
        sees_T: Bool[Tensor, " T"],
        last_B2: np.ndarray,
    ) -> None:
        self.buckets = tuple(buckets)
        self.slot_T = slot_T
        self.sees_T = sees_T
        self.last_B2 = last_B2
        self.index_S = torch.cat([index_BL.flatten() for index_BL, _, _ in buckets] or [slot_T[:0]])
        self.memory_N = torch.cat([memory_BM.flatten() for _, memory_BM, _ in buckets] or [slot_T[:0]])
        """Text and memory positions of all buckets, one behind the other."""

    def to(self, device: torch.device) -> "CrossPlan":
        buckets = [(i.to(device), m.to(device), mask.to(device)) for i, m, mask in self.buckets]
        return CrossPlan(buckets, self.slot_T.to(device), self.sees_T.to(device), self.last_B2)

    def step(self, length: int) -> "CrossPlan":
        """The plan of the next `length` tokens of each row, for decoding with a cache."""
        rows = range(len(self.last_B2))
        return plan_cross([(b * length, (b + 1) * length) for b in rows], np.repeat(self.last_B2, length, axis=0))


def trees(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Group a row's segments into trees; in the result, `parent` counts from the first segment of the tree.

    Raises:
        ValueError: a gap between segments, or a parent that is not before its child in the same tree.
    """
    groups: list[list[Segment]] = []
    first = end = 0
    for index, segment in enumerate(segments):
        if segment.start != end or segment.length < 1:
            raise ValueError(f"segment {index} is [{segment.start}, {segment.end}), but the one before ends at {end}")
        end = segment.end
        if segment.parent < 0:
            groups.append([segment])
            first = index
        elif first <= segment.parent < index:
            groups[-1].append(segment._replace(parent=segment.parent - first))
        else:
            raise ValueError(f"segment {index} does not follow its parent {segment.parent} inside one tree")
    return groups


def plan_row(segments: Sequence[Segment], positions: np.ndarray) -> RowPlan:
    """Plan the self-attention of a row.

    Args:
        segments: cover the row from 0 without gaps, trees contiguous.
        positions: [T] position of each token in its document (children restart behind their parent).

    Raises:
        ValueError: segments with gaps or impossible parents, or not as long as `positions`.
    """
    covered = segments[-1].end if segments else 0
    if covered != len(positions):
        raise ValueError(f"the segments cover {covered} tokens, but there are {len(positions)} positions")
    order: list[np.ndarray] = []
    buckets: list[Bucket] = []
    for length, group in _by_length(trees(segments), _tree_length):
        starts = np.array([tree[0].start for tree in group])
        lengths = np.array([_tree_length(tree) for tree in group])
        slots = np.arange(length)
        index = np.where(slots < lengths[:, None], starts[:, None] + slots, 0)
        mask = None
        if any(len(tree) > 1 for tree in group):
            mask = torch.from_numpy(np.stack([_tree_mask(tree, length) for tree in group]))[:, None]
        buckets.append(Bucket(torch.from_numpy(index), mask))
        order.append(np.where(slots < lengths[:, None], index, -1).ravel())
    slot = _slots(order, len(positions))
    return RowPlan(buckets, torch.from_numpy(slot), torch.from_numpy(positions))


def plan_cross(ranges: Sequence[tuple[int, int]], spans: np.ndarray) -> CrossPlan:
    """Plan the cross-attention of text to memory.

    Args:
        ranges: (start, end) of each tree (or padded row) among the T flat text positions.
        spans: [T, 2] the slice of the memory that each position reads; start == end reads nothing, and gets zero.
    """
    seen = [r for r in ranges if (spans[r[0] : r[1], 1] > spans[r[0] : r[1], 0]).any()]

    def memory_of(range_: tuple[int, int]) -> tuple[int, int]:
        used = spans[range_[0] : range_[1]]
        used = used[used[:, 1] > used[:, 0]]
        return int(used[:, 0].min()), int(used[:, 1].max())

    order: list[np.ndarray] = []
    buckets = []
    for length, group in _by_length(seen, lambda r: r[1] - r[0]):
        memory = np.array([memory_of(r) for r in group])
        width = int((memory[:, 1] - memory[:, 0]).max())
        starts, lengths = np.array([r[0] for r in group]), np.array([r[1] - r[0] for r in group])
        slots = np.arange(length)
        index = np.where(slots < lengths[:, None], starts[:, None] + slots, starts[:, None])
        columns = np.arange(width)
        inside = columns < (memory[:, 1] - memory[:, 0])[:, None]
        memory_BM = np.where(inside, memory[:, :1] + columns, memory[:, :1])
        first, last = spans[index, 0][..., None], spans[index, 1][..., None]
        at = memory[:, :1, None] + columns
        mask = (at >= first) & (at < last) & inside[:, None, :]
        reads = mask.any(-1) & (slots < lengths[:, None])
        mask |= ~mask.any(-1, keepdims=True)  # rows that read nothing must not divide by zero; their output is not used
        buckets.append((torch.from_numpy(index), torch.from_numpy(memory_BM), torch.from_numpy(mask)[:, None]))
        order.append(np.where(reads, index, -1).ravel())
    last_B2 = np.array([spans[end - 1] for _, end in ranges]).reshape(-1, 2)
    sees_T = torch.from_numpy(spans[:, 1] > spans[:, 0])
    return CrossPlan(buckets, torch.from_numpy(_slots(order, len(spans))), sees_T, last_B2)


def _tree_length(tree: Sequence[Segment]) -> int:
    return tree[-1].end - tree[0].start


def _tree_mask(tree: Sequence[Segment], length: int) -> np.ndarray:
    """[L, L] causal inside a segment, everything of the ancestors; padding sees itself."""
    family = np.eye(len(tree), dtype=bool)
    for index, segment in enumerate(tree):
        if segment.parent >= 0:
            family[index] |= family[segment.parent]
    owner = np.repeat(np.arange(len(tree)), [segment.length for segment in tree])
    mask = np.eye(length, dtype=bool)
    mask[: len(owner), : len(owner)] = np.tril(family[owner][:, owner])
    return mask


def _by_length(items: Sequence[Item], length_of: Callable[[Item], int]) -> Iterator[tuple[int, list[Item]]]:
    """Group items of similar length; yields the longest length of each group, groups in order of length."""
    groups: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        length = length_of(item)
        step = max(1, (1 << (length - 1).bit_length()) // (2 * _STEPS_PER_OCTAVE)) if length > 1 else 1
        groups[-(-length // step) * step].append(item)
    for key in sorted(groups):
        yield max(length_of(item) for item in groups[key]), groups[key]


def _slots(order: Sequence[np.ndarray], total: int) -> np.ndarray:
    """Invert the gather: for each of `total` positions its slot in the concatenation, or the slot behind the last."""
    flat = np.concatenate(order) if order else np.empty(0, dtype=np.int64)
    slot = np.full(total, len(flat), dtype=np.int64)
    real = np.flatnonzero(flat >= 0)
    slot[flat[real]] = real
    return slot
