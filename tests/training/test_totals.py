"""Totals add up, over steps and processes, and figures that nobody knows are not made up."""

from collections.abc import Sequence

import pytest

from beni.data.batch import PackedBatch, pack
from beni.errors import Uncountable
from beni.flops.account import FlopMeter
from beni.flops.figures import total
from beni.model.build import Built
from beni.processes import Processes
from beni.training.stopwatch import WAIT
from beni.training.totals import Totals
from tests.model.small import CONVERSATIONS, make


@pytest.fixture(scope="module")
def built() -> Built:
    return make("inline")


@pytest.fixture(scope="module")
def meter(built: Built) -> FlopMeter:
    return FlopMeter(built.model)


@pytest.fixture(scope="module")
def rows(built: Built) -> list[PackedBatch]:
    return [pack([[built.composer.compose(sample)]], built.composer) for sample in CONVERSATIONS]


def totals(rows: Sequence[PackedBatch], meter: FlopMeter | None, seconds: float = 0, waited: float = 0) -> Totals:
    made = Totals(seconds=seconds, times={WAIT: waited})
    made.add(rows, meter)
    if meter is not None:
        made.count(meter)
    return made


def test_parts_make_the_whole(rows: Sequence[PackedBatch], meter: FlopMeter) -> None:
    whole, first, second = totals(rows, meter), totals(rows[:2], meter), totals(rows[2:], meter)
    first.merge(second)
    assert first == whole
    assert total(whole.flops).model == sum(total(meter.row(row).full).model for row in rows)
    assert whole.samples == len(rows) and whole.tokens == sum(row.stats.tokens for row in rows)


def test_speed_and_cost_follow(rows: Sequence[PackedBatch], meter: FlopMeter) -> None:
    made = totals(rows, meter, seconds=2.0, waited=0.5)
    operations = total(made.flops).model
    figures = made.summary(limit=operations)
    assert figures["flops_per_s"] == operations / 2 and figures["mfu"] == pytest.approx(0.5)
    assert figures["hfu"] == figures["mfu"] > figures["mfu_causal"]
    assert figures["flops_per_sample"] == operations / len(rows)
    assert figures["samples_per_s"] == len(rows) / 2 and figures["images_per_s"] == made.images / 2
    assert figures["data_wait"] == 0.25
    assert made.summary(limit=None)["mfu"] is None


def test_one_row_without_a_count_leaves_no_figure_of_operations(rows: Sequence[PackedBatch], meter: FlopMeter) -> None:
    made = totals(rows[1:], meter, seconds=1.0)
    made.merge(totals(rows[:1], None))
    figures = made.summary(limit=1e9)
    assert figures["samples_per_s"] == len(rows)
    names = ("flops_per_s", "mfu", "mfu_causal", "hfu", "flops_per_sample", "flops_per_sample_by_part")
    assert [figures[name] for name in names] == [None] * len(names)


def test_rows_that_turn_out_not_to_be_countable_are_noted(
    rows: Sequence[PackedBatch], meter: FlopMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(facts: object) -> None:
        raise Uncountable("no")

    made = Totals()
    made.add(rows, meter)
    with monkeypatch.context() as patch, pytest.raises(Uncountable):
        patch.setattr(meter, "cost", refuse)
        made.count(meter)
    assert made.uncounted == len(rows) and not made.rows and not made.flops


def test_nothing_trained_divides_by_nothing() -> None:
    figures = Totals().summary(limit=1e9)
    assert figures["samples_per_s"] == 0 and figures["flops_per_sample"] is None and figures["data_wait"] == 0


def test_processes_together_take_as_long_as_one_and_wait_as_long_as_the_slowest(
    rows: Sequence[PackedBatch], meter: FlopMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = totals(rows[:1], meter, 2.0, waited=0.1), totals(rows[1:], meter, 2.5, waited=0.7)
    there.bad = {"broken": "why"}
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, there])
    together = here.over(Processes.__new__(Processes))
    assert (together.seconds, together.times[WAIT]) == (2.0, 0.7)
    assert together.samples == len(rows) and together.flops == totals(rows, meter).flops
    assert together.bad == {"broken": "why"}
