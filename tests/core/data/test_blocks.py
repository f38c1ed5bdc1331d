"""Blocks of streams: what is read, in which order, whoever reads it and from wherever."""

import dataclasses
import json
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing import Event
from typing import Any

import pytest

from beni.data.batch import PackedBatch
from beni.data.blocks import Blocks
from beni.data.loader import batches
from beni.data.order import ORDERS
from beni.data.plan import Place
from beni.errors import BeniError, ConfigError, DataError
from beni.interfaces import Reading, Stream
from beni.options import BatchConfig
from beni.sample import Sample, Turn, vqa_sample
from tests.conftest import MakePicture
from tests.core.data.streams import ListStream
from tests.core.data.test_loader import equal
from tests.core.data.tiny import composer

BATCH = BatchConfig(rows=2, row_tokens=60)


def text(name: str, length: int = 4) -> Sample:
    return Sample(name, (Turn("text", ("x" * length,)),))


@pytest.fixture
def seen(picture: MakePicture) -> list[Sample]:
    """Ten questions about pictures, one of which no sample could be made of, and one that no row can hold."""
    found = [vqa_sample(f"p{n}", picture(n), "?" * (n + 1), "y") for n in range(10)]
    return [*found[:4], Sample.unusable("torn", "it is torn"), *found[4:], text("long", 100)]


def blocks_of(
    sources: Sequence[Sequence[Sample] | Stream], quotas: Sequence[int], order: str = "shuffled", seed: int = 3
) -> Blocks:
    config = dataclasses.replace(BATCH, order=order)  # type: ignore[arg-type]
    return Blocks(sources, quotas, composer(max_tokens=60), config, seed, augment=0.2)


def names(blocks: Blocks, count: int) -> list[list[str]]:
    """Of the samples of the first blocks, in the order in which they are trained on."""
    found: dict[int, list[str]] = {}
    for place, tasks in blocks.walk(Place(), 1000, 0, 1, apart=False):
        if place.epoch == count:
            break
        found.setdefault(place.epoch, []).extend(s.id for _, trees, _ in tasks for tree in trees for s in tree)
    return list(found.values())


@pytest.mark.parametrize("order", ORDERS)
def test_workers_processes_and_a_later_start_change_nothing(seen: list[Sample], order: str) -> None:
    sources = [ListStream(seen), [text(f"t{n}", 2 * n + 2) for n in range(7)]]
    make = lambda: blocks_of(sources, (8, 4), order)  # noqa: E731
    steps = 12
    walked = list(batches(make(), Place(), steps, workers=0))
    assert len(walked) == steps and walked[-1][0].epoch > 1
    for workers in (1, 2):
        loaded = list(batches(make(), Place(), steps, workers))
        assert [place for place, _ in loaded] == [place for place, _ in walked]
        assert all(equal(a, b) for x, y in zip(walked, loaded, strict=True) for a, b in zip(x[1], y[1], strict=True))
    shares = [list(batches(make(), Place(), steps, workers=0, rank=rank, world=2)) for rank in (0, 1)]
    for step, (whole, one, other) in enumerate(zip(walked, *shares, strict=True)):
        assert equal(whole[1][0], one[1][0]) and equal(whole[1][1], other[1][0]), step
    for (place, _), (_, following) in pairwise(walked):
        [(_, sought)] = batches(make(), Place(*json.loads(json.dumps(place))), 1, workers=0)
        assert all(equal(a, b) for a, b in zip(following, sought, strict=True))


def test_a_block_holds_the_next_samples_of_a_stream_once_each(seen: list[Sample]) -> None:
    usable = [sample.id for sample in seen if sample.id not in ("torn", "long")]
    first, second, third = names(blocks_of([ListStream(seen)], (5,)), 3)
    assert sorted(first) == usable[:4], "the fifth item cannot be trained on"
    assert sorted(second) == usable[4:9]
    assert sorted(third) == sorted([usable[9], *usable[:3]]), "behind the last one, which is too long, comes the first"


def test_a_stream_is_shuffled_within_its_blocks() -> None:
    stream = [text(f"{n:02}") for n in range(40)]
    first, second = names(blocks_of([ListStream(stream)], (20,)), 2)
    assert first != sorted(first) and [int(name) - 20 for name in second] != [int(name) for name in first]
    assert names(blocks_of([ListStream(stream)], (20,)), 1) == [first]
    assert names(blocks_of([ListStream(stream)], (20,), seed=4), 1) != [first]


def test_other_sources_cycle_through_their_own_passes() -> None:
    stream, texts = ListStream([text(f"s{n}") for n in range(50)]), [text(f"t{n}") for n in range(5)]
    found = names(blocks_of([stream, texts], (6, 3)), 5)
    assert [sum(name.startswith("t") for name in block) for block in found] == [3] * 5
    drawn = Counter(name for block in found for name in block if name.startswith("t"))
    assert drawn == dict.fromkeys(("t0", "t1", "t2", "t3", "t4"), 3), "fifteen are three passes over five"


def bad_of(rows: Sequence[PackedBatch]) -> list[tuple[str, str]]:
    return [pair for row in rows for pair in row.stats.bad]


def test_what_cannot_be_trained_on_is_told_once(seen: list[Sample]) -> None:
    told = [
        [bad_of(rows) for place, rows in batches(blocks_of([ListStream(seen)], (12,)), Place(), 8, 1, rank, world=2)]
        for rank in (0, 1)
    ]
    named = [name for step in told[0] for name, _ in step]
    assert named[:2] == ["torn", "long"] and not any(told[1])
    assert told[0][0][0] == ("torn", "sample 'torn': it is torn")
    [(place, _)] = batches(blocks_of([ListStream(seen)], (12,)), Place(), 1, 0)
    [(_, later)] = batches(blocks_of([ListStream(seen)], (12,)), place, 1, 0)
    assert bad_of(later) == []


@pytest.mark.parametrize("kind", [DataError, ConfigError])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_breaks_is_told_in_its_own_words(workers: int, kind: type[BeniError]) -> None:
    stream = ListStream([text(f"{n}", 30) for n in range(40)], breaks_at=25, kind=kind)
    seen = []
    with pytest.raises(kind, match=r"^the stream is broken behind item 25$"):
        for _, rows in batches(blocks_of([stream], (10,)), Place(), 100, workers):
            seen += [row.stats.samples for row in rows]
    assert sum(seen) == 20, "behind all that could be read"


def test_a_block_without_a_usable_sample_is_passed_over() -> None:
    bad = [Sample.unusable(f"b{n}", "it is torn") for n in range(7)]
    stream = ListStream([*(text(f"f{n}") for n in range(3)), *bad, *(text(f"l{n}") for n in range(2))])
    first, second = names(blocks_of([stream], (3,)), 2)
    assert sorted(first) == ["f0", "f1", "f2"] and sorted(second) == ["l0", "l1"]
    told = [pair for _, rows in batches(blocks_of([stream], (3,)), Place(), 3, 0) for pair in bad_of(rows)]
    assert [name for name, _ in told] == [sample.id for sample in bad]
    with pytest.raises(
        DataError, match=r"a stream has nothing to train on, from its beginning to its end: .*it is torn"
    ):
        blocks_of([ListStream(bad)], (3,)).block(0)


def test_a_source_beside_a_stream_must_have_something() -> None:
    with pytest.raises(DataError, match=r"a source beside a stream has nothing to train on: .*it is torn"):
        blocks_of([ListStream([text("a")]), [Sample.unusable("b", "it is torn")]], (2, 1))


class Stalled(ListStream):
    """Reading behind the first block takes longer than anybody waits."""

    def read(self, position: Any, count: int) -> Reading:
        if position:
            Event().wait(600)
        return super().read(position, count)


def test_a_reader_that_waits_for_a_network_does_not_outlive_the_run() -> None:
    fed = batches(blocks_of([Stalled([text(f"{n}", 30) for n in range(40)])], (10,)), Place(), 100, 1)
    next(fed)
    assert len(multiprocessing.active_children()) == 2, "the reader and a worker"
    fed.close()
    assert multiprocessing.active_children() == []


def test_an_empty_stream_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(DataError, match="a stream holds nothing at all"):
        blocks_of([ListStream([])], (5,)).block(0)
