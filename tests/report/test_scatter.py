"""Points of quality against cost stay in the drawing, wherever they lie."""

import pytest

from beni.report.scatter import Scatter, Spot, make_scatter


def spot(cost: float, quality: float, half: float = 0.02, front: bool = False) -> Spot:
    return Spot(1, "a", cost, quality, max(0.0, quality - half), min(1.0, quality + half), front)


@pytest.mark.parametrize(
    "spots",
    [
        [spot(1e6, 0.5), spot(2e6, 0.7)],
        [spot(1e6, 0.0, 0), spot(1e6, 0.0, 0)],
        [spot(1e6, 1.0, 0), spot(2e6, 1.0, 0)],
        [spot(1e6, 0.01), spot(1e9, 0.99)],
        [spot(0.0, 0.5), spot(1e9, 0.5)],
        [spot(3e6, 0.123, 0), spot(3e6, 0.124, 0)],
    ],
)
def test_everything_is_inside(spots: list[Spot]) -> None:
    scatter = make_scatter(spots)
    assert scatter is not None
    for each in scatter.spots:
        assert Scatter.left - 0.1 <= each.x <= Scatter.right + 0.1
        assert Scatter.top - 0.1 <= each.high <= each.y <= each.low <= Scatter.bottom + 0.1
    heights = [tick.at for tick in scatter.y_ticks]
    assert heights == sorted(heights, reverse=True) and Scatter.top - 0.1 <= heights[-1] <= heights[0]
    assert heights[0] <= Scatter.bottom + 0.1 and len(heights) >= 2


def test_better_is_higher_and_dearer_further_right() -> None:
    scatter = make_scatter([spot(1e6, 0.5, front=True), spot(3e6, 0.9, front=True), spot(2e6, 0.4)])
    assert scatter is not None and not scatter.logarithmic
    cheap, good, bad = scatter.spots
    assert cheap.x < bad.x < good.x and good.y < cheap.y < bad.y
    assert scatter.front == f"{cheap.x:.1f},{cheap.y:.1f} {good.x:.1f},{good.y:.1f}"
    assert "90.0 % (88.0 – 92.0)" in good.title


def test_costs_far_apart_have_a_logarithmic_axis_and_one_point_no_drawing() -> None:
    scatter = make_scatter([spot(1e6, 0.5), spot(1e9, 0.9), spot(1e12, 0.9)])
    assert scatter is not None and scatter.logarithmic
    one, two, three = (each.x for each in scatter.spots)
    assert two - one == pytest.approx(three - two, abs=0.5)
    assert make_scatter([spot(1e6, 0.5)]) is None
