"""Intervals: Wilson's published values, wider where items depend on each other, narrower where they get parts."""

import numpy as np
import pytest

from beni.eval.interval import _student, clustered, numbered, student, wilson


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
    assert found == pytest.approx(plain, abs=2e-4)


def test_items_that_agree_count_as_one() -> None:
    scores = (np.random.default_rng(0).random(250) < 0.8).astype(float)
    assert clustered(np.repeat(scores, 4), np.repeat(np.arange(250), 4)) == pytest.approx(
        clustered(scores, np.arange(250)), abs=1e-9
    )


def test_where_all_are_right_images_are_counted_and_not_items() -> None:
    assert clustered(np.ones(40), np.repeat(np.arange(10), 4)) == wilson(1.0, 10)


@pytest.mark.parametrize("scores", [[1, 0, 0] * 10, [1, 0] * 14 + [1, 1], [0.3, 0.6, 0.9] * 10])
def test_it_is_never_narrower_than_that_of_as_many_items_that_do_not_depend_on_each_other(scores: list[float]) -> None:
    """Also where all images happen to have the same mean, which shows no variance."""
    values = np.array(scores, dtype=float)
    low, high = clustered(values, np.arange(30) // 3)
    plain_low, plain_high = wilson(float(values.mean()), 30)
    assert low <= plain_low and high >= plain_high and high - low < 3 * (plain_high - plain_low)


@pytest.mark.parametrize("groups", [1, 2])
def test_few_images_say_little(groups: int) -> None:
    low, high = clustered(np.array([1.0, 0.0] * 10), np.arange(20) * groups // 20)
    assert high - low > 0.75


@pytest.mark.parametrize(("images", "per_image"), [(200, 1), (200, 5), (40, 5), (10, 5), (5, 10)])
def test_it_holds_the_truth_as_often_as_it_says(images: int, per_image: int) -> None:
    """Images are hard or easy: of many evaluations, about 95 % of the intervals hold the mean."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(images), per_image)
    held = 0
    for _ in range(400):
        hard = random.beta(1.5, 1.5, images)  # mean 0.5
        low, high = clustered((random.random(len(groups)) < hard[groups]).astype(float), groups)
        held += low <= 0.5 <= high
    assert 0.92 < held / 400 < 0.995


@pytest.mark.parametrize(("images", "per_image"), [(500, 1), (100, 5), (50, 2)])
def test_that_of_scores_that_are_no_shares_holds_the_truth_as_often(images: int, per_image: int) -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(images), per_image)
    held = 0
    for _ in range(400):
        scores = random.gamma(2.0, 0.5, images)[groups] * random.uniform(0.5, 1.5, len(groups))  # mean 1
        found = student(scores, groups)
        assert found is not None
        held += found[0] <= 1 <= found[1]
    assert 0.91 < held / 400 < 0.98


def test_of_scores_that_are_no_shares_it_is_students() -> None:
    scores = np.array([0.0, 1.0, 2.0, 5.0, 7.0])
    assert student(scores, np.arange(5)) == pytest.approx((0.0, 6.62), rel=1e-2)  # 3 ± 2.776 · 1.304
    assert student(scores, np.zeros(5, dtype=np.int64)) is None, "one image"
    assert student(np.ones(5), np.arange(5)) is None, "nothing shows how images vary"
    assert student(np.array([]), np.array([], dtype=np.int64)) is None


def test_students_quantiles_are_the_published_ones() -> None:
    published = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 10: 2.228, 100: 1.984}
    assert {freedom: _student(freedom) for freedom in published} == pytest.approx(published, rel=1e-2)


def test_names_are_numbered() -> None:
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
