import math

import pytest

from beni.report import figures


@pytest.mark.parametrize(
    ("hits", "items", "low", "high"),
    [  # statsmodels.stats.proportion.proportion_confint(method="wilson")
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (50, 100, 0.4038315, 0.5961685),
    ],
)
def test_wilson_interval_has_the_published_values(hits: int, items: int, low: float, high: float) -> None:
    assert figures.wilson(hits, items) == pytest.approx((low, high), abs=1e-6)


def test_without_items_the_interval_is_everything() -> None:
    assert figures.wilson(0, 0) == (0.0, 1.0)


def test_the_interval_holds_the_share_and_narrows_with_items() -> None:
    widths = []
    for items in (10, 100, 1000, 10_000):
        low, high = figures.wilson(items * 9 // 10, items)
        assert low < 0.9 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("show", figures.ALL)
def test_what_is_missing_becomes_a_dash(show) -> None:
    assert show(None) == "–"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figures.percent(0.9344), "93.4 %"),
        (figures.whole(12345.6), "12,346"),
        (figures.decimal(0.345678), "0.3457"),
        (figures.decimal(45678.9), "45,679"),
        (figures.decimal(math.nan), "not a number"),
        (figures.quantity(999), "999"),
        (figures.quantity(1_438_880), "1.44 M"),
        (figures.quantity(999_999), "1000 k"),
        (figures.quantity(7_000_000_000), "7.00 B"),
        (figures.operations(85_823_423), "85.8 M"),
        (figures.operations(1.35e10), "13.5 G"),
        (figures.operations(989.4e12), "989 T"),
        (figures.operations(12), "12 "),
        (figures.size(3 * 2**30), "3.00 GiB"),
        (figures.size(1023 * 2**20), "1023 MiB"),
        (figures.duration(4.21), "4.2 s"),
        (figures.duration(59.6), "1 min 00 s"),
        (figures.duration(3725), "1 h 02 min"),
    ],
)
def test_figures_read_well(shown: str, expected: str) -> None:
    assert shown == expected
