"""Intervals: Wilson's published values, wider where items depend on each other, narrower where they get parts."""

import numpy as np
import pytest

from beni.eval.interval import clustered, numbered, wilson


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
    assert wilson(hits / items, items) == pytest.approx((low, high), abs=1e-6)


def test_without_items_the_interval_is_everything() -> None:
    assert wilson(0, 0) == clustered(np.array([]), np.array([], dtype=np.int64)) == (0.0, 1.0)


def test_of_independent_items_it_is_nearly_wilsons() -> None:
    scores = (np.random.default_rng(0).random(1000) < 0.9).astype(float)
    found, plain = clustered(scores, np.arange(1000)), wilson(scores.mean(), 1000)
    assert found == pytest.approx(plain, abs=1e-4)


def test_items_that_agree_count_as_one() -> None:
    scores = (np.random.default_rng(0).random(250) < 0.8).astype(float)
    assert clustered(np.repeat(scores, 4), np.repeat(np.arange(250), 4)) == pytest.approx(
        clustered(scores, np.arange(250)), abs=1e-9
    )


def test_where_all_are_right_images_are_counted_and_not_items() -> None:
    assert clustered(np.ones(40), np.repeat(np.arange(10), 4)) == wilson(1.0, 10)


def test_scores_that_vary_less_than_zeros_and_ones_have_a_narrower_interval() -> None:
    random = np.random.default_rng(0)
    low, high = clustered(random.choice([0.3, 0.6, 0.9], 500), np.arange(500))
    ones_low, ones_high = wilson(0.6, 500)
    assert high - low < 0.6 * (ones_high - ones_low)


@pytest.mark.parametrize("per_image", [1, 5])
def test_it_holds_the_truth_as_often_as_it_says(per_image: int) -> None:
    """Images are hard or easy: of many evaluations, about 95 % of the intervals hold the mean."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), per_image)
    held = 0
    for _ in range(400):
        hard = random.beta(1.5, 1.5, 200)  # mean 0.5
        low, high = clustered((random.random(len(groups)) < hard[groups]).astype(float), groups)
        held += low <= 0.5 <= high
    assert 0.92 < held / 400 < 0.98


def test_names_are_numbered() -> None:
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
