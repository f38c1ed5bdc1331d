"""Intervals: as wide as theory says, wider where items or seeds depend on each other, and paired."""

import numpy as np
import pytest

from beni.eval.interval import numbered
from beni.sweep.bootstrap import draws, interval

ITEMS = 1000


def answers(share: float, seeds: int = 1, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, ITEMS)) < share).astype(float)


def width(bounds: tuple[float, float]) -> float:
    return bounds[1] - bounds[0]


def test_of_independent_items_it_is_that_of_a_share() -> None:
    correct = answers(0.8)
    [found] = draws([correct], np.arange(ITEMS))
    share = correct.mean()
    assert found.mean() == pytest.approx(share, abs=0.002)
    assert width(interval(found)) == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / ITEMS), rel=0.1)


def test_items_about_one_image_count_as_one_where_they_agree() -> None:
    correct = np.repeat(answers(0.8)[:, : ITEMS // 4], 4, axis=1)
    [together] = draws([correct], np.arange(ITEMS) // 4)
    [apart] = draws([correct], np.arange(ITEMS))
    assert width(interval(together)) == pytest.approx(2 * width(interval(apart)), rel=0.15)


def test_groups_of_different_sizes_are_weighted_by_their_items() -> None:
    correct = np.array([[1.0] * 90 + [0.0] * 10])
    [found] = draws([correct], numbered(["large"] * 90 + [f"small {n}" for n in range(10)]))
    assert {round(float(value), 6) for value in found} <= {
        round(90 * k / (90 * k + 11 - k), 6) if k else 0.0 for k in range(12)
    }


def test_seeds_that_differ_widen_it() -> None:
    alike = np.repeat(answers(0.8), 3, axis=0)
    apart = np.stack([np.arange(ITEMS) < count for count in (700, 800, 900)]).astype(float)
    [of_alike], [of_apart] = draws([alike], np.arange(ITEMS)), draws([apart], np.arange(ITEMS))
    [of_one] = draws([alike[:1]], np.arange(ITEMS))
    assert width(interval(of_alike)) == pytest.approx(width(interval(of_one)), rel=0.1)
    assert width(interval(of_apart)) > 2 * width(interval(of_alike))


def test_differences_are_paired() -> None:
    """A combination that answers five items more than another is better, however hard the items are."""
    first = answers(0.5)
    second = first.copy()
    second[0, np.flatnonzero(first[0])[:5]] = 0.0
    one, other = draws([first, second], np.arange(ITEMS))
    low, high = interval(one - other)
    assert 0 < low < 0.005 < high < 0.012
    assert width(interval(one)) > 0.05
    same, again = draws([first, first], np.arange(ITEMS))
    assert (same == again).all()


def test_a_seed_repeats_it_and_nothing_is_drawn_of_nothing() -> None:
    correct = answers(0.3)
    assert (draws([correct], np.arange(ITEMS), 300) == draws([correct], np.arange(ITEMS), 300)).all()
    assert (draws([correct], np.arange(ITEMS), 300, seed=1) != draws([correct], np.arange(ITEMS), 300)).any()
    with pytest.raises(ValueError, match="no items"):
        draws([np.zeros((1, 0))], np.zeros(0, dtype=np.int64))
