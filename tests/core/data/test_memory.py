"""Who reads what in the visual memory, compared with a reading of each position by itself."""

import numpy as np
import pytest

from beni.data.memory import Reader, plan_memory
from beni.interfaces import Reads

SIZES = (2, 3, 1, 4)
STARTS = np.array([0, 2, 5, 6, 10])
READERS = (
    Reader(0, 8, ((1, 0), (2, 1), (5, 2))),  # two images side by side, and one behind text
    Reader(8, 10, ()),
    Reader(10, 14, ((11, 3), (13, 0))),
    Reader(14, 17, ((11, 3), (13, 0))),  # a child of the one before
    Reader(17, 20, ((17, 2), (18, 1), (19, 0))),
)
RANGES = ((0, 8), (8, 10), (10, 17), (17, 20))


def expected(reader: Reader, position: int, reads: Reads) -> list[int]:
    """The visual tokens a position reads, image after image."""
    seen = [image for image in reader.images if image[0] <= position]
    if reads == "last":
        seen = seen[-1:]
    elif reads == "run":
        first = len(seen) - 1
        while first > 0 and seen[first - 1][0] + 1 == seen[first][0]:
            first -= 1
        seen = seen[max(first, 0) :]
    return [token for _, number in seen for token in range(STARTS[number], STARTS[number + 1])]


def read(plan: tuple[np.ndarray | None, object], total: int) -> dict[int, list[int]]:
    """The visual tokens that each position reads according to a plan's buckets."""
    memory_M, cross = plan
    source = np.arange(total) if memory_M is None else memory_M
    found: dict[int, list[int]] = {}
    slots = cross.slot_T.tolist()  # type: ignore[attr-defined]
    begin = 0
    for index_BL, memory_BM, mask_B1LM in cross.buckets:  # type: ignore[attr-defined]
        rows, length = index_BL.shape
        for row in range(rows):
            for column in range(length):
                position = int(index_BL[row, column])
                if slots[position] == begin + row * length + column:
                    found[position] = source[memory_BM[row][mask_B1LM[row, 0, column]].numpy()].tolist()
        begin += rows * length
    return found


@pytest.mark.parametrize("reads", ["last", "run", "all"])
def test_each_position_reads_its_images(reads: Reads) -> None:
    plan = plan_memory(READERS, RANGES, STARTS, 20, reads)
    found = read(plan, sum(SIZES))
    for reader in READERS:
        for position in range(reader.start, reader.end):
            wanted = expected(reader, position, reads)
            assert found.get(position, []) == wanted
            assert bool(plan[1].sees_T[position]) == bool(wanted)


def test_images_read_one_by_one_are_in_the_memory_once() -> None:
    assert plan_memory(READERS, RANGES, STARTS, 20, "last")[0] is None


def test_company_is_not_repeated() -> None:
    """The child reads what its parent reads: three sequences, not four."""
    memory_M = plan_memory(READERS, RANGES, STARTS, 20, "all")[0]
    assert memory_M is not None and len(memory_M) == (2 + 3 + 1) + (4 + 2) + (1 + 3 + 2)


def test_nothing_is_planned_where_nothing_is_read() -> None:
    memory_M, cross = plan_memory(READERS, RANGES, STARTS, 20, "nothing")
    assert memory_M is None and not cross.buckets and not cross.sees_T.any()
