import math

import pytest

from beni.report import figures


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
