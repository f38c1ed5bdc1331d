"""Which images text reads: the visual memory of cross-attention, and the slice of it that each position sees.

A position reads one contiguous slice. Where it reads one image, every distinct image is in the memory once. Where it
reads several together, they must lie side by side: an image that different documents show in different company is then
in the memory more than once. It is encoded once all the same.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from beni.interfaces import Reads
from beni.nn.plan import CrossPlan, plan_cross


class Reader(NamedTuple):
    """A stretch of text: [start, end) among all text positions, and the images of its document so far."""

    start: int
    end: int
    images: tuple[tuple[int, int], ...]
    """(position of its placeholder, number of the image); those inherited from an ancestor have earlier positions."""


def plan_memory(
    readers: Sequence[Reader], ranges: Sequence[tuple[int, int]], starts: np.ndarray, length: int, reads: Reads
) -> tuple[np.ndarray | None, CrossPlan]:
    """Lay out the memory and plan who reads what.

    Args:
        readers: cover the text in order; an ancestor stands before its descendants.
        ranges: (start, end) of each tree or padded row.
        starts: [I + 1] where each image's visual tokens begin, and the end of the last.
        length: text positions in all.
        reads: which images a position reads.

    Returns:
        The visual tokens that make up the memory ([M] indices; None: all of them in their order), and the plan.
    """
    sizes = np.diff(starts)
    begins: dict[tuple[int, ...], int] = {}
    source: list[np.ndarray] = []
    end = 0
    spans = np.zeros((length, 2), dtype=np.int64)
    for reader in readers if reads != "nothing" else ():
        for piece in _pieces(reader.images, reads):
            numbers = tuple(number for _, number in piece)
            if numbers not in begins:
                begins[numbers] = end
                source += [np.arange(starts[n], starts[n + 1]) for n in numbers]
                end += int(sizes[list(numbers)].sum())
            last = begins[numbers]
            for position, number in piece:
                last += int(sizes[number])
                spans[max(position, reader.start) : reader.end] = begins[numbers], last
    memory_M = np.concatenate(source) if source else np.arange(starts[-1])
    whole = np.array_equal(memory_M, np.arange(starts[-1]))
    return None if whole else memory_M, plan_cross(ranges, spans)


def _pieces(images: Sequence[tuple[int, int]], reads: Reads) -> Iterator[Sequence[tuple[int, int]]]:
    """The groups of images that are read together."""
    first = 0
    for index in range(1, len(images) + 1):
        follows = index < len(images) and images[index][0] == images[index - 1][0] + 1
        if index == len(images) or not (reads == "all" or (reads == "run" and follows)):
            yield images[first:index]
            first = index
