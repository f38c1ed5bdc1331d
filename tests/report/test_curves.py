import math

import pytest

from beni.report.curves import MOST_POINTS, Plot, make_plot

KEYS = {"loss": "training", "val_loss": "validation"}


def lines(count: int) -> list[dict[str, float]]:
    return [{"step": 10 * (i + 1), "loss": 1.0 + 1 / (i + 1)} for i in range(count)]


def test_every_line_is_a_point_inside_the_axes() -> None:
    metrics = [*lines(37), {"step": 100, "val_loss": 1.5}, {"step": 370, "val_loss": 1.2}]
    plot = make_plot("Loss", "nats", metrics, KEYS)
    assert plot is not None
    assert [len(series.points) for series in plot.series] == [37, 2]
    assert len(plot.series[0].path.split()) == 37
    for series in plot.series:
        for x, y in series.points:
            assert Plot.left <= x <= Plot.right and Plot.top <= y <= Plot.bottom


def test_a_lower_loss_is_drawn_lower_and_a_later_step_further_right() -> None:
    plot = make_plot("Loss", "nats", lines(5), KEYS)
    assert plot is not None
    xs, ys = zip(*plot.series[0].points, strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys)


def test_hovering_names_all_values_of_a_step_and_strips_tile_the_plot() -> None:
    plot = make_plot("Loss", "nats", [*lines(3), {"step": 20, "val_loss": 1.25}], KEYS)
    assert plot is not None
    assert [hover.title for hover in plot.hovers] == [
        "step 10\ntraining: 2",
        "step 20\ntraining: 1.5\nvalidation: 1.25",
        "step 30\ntraining: 1.333",
    ]
    assert sum(hover.width for hover in plot.hovers) == pytest.approx(Plot.right - Plot.left)


def test_ticks_are_round_and_enclose_the_values() -> None:
    plot = make_plot("Loss", "nats", lines(20), KEYS)
    assert plot is not None
    assert [tick.label for tick in plot.y_ticks] == ["1", "1.25", "1.5", "1.75", "2"]
    assert [tick.label for tick in plot.x_ticks] == ["50", "100", "150", "200"]


def test_a_wide_range_is_logarithmic() -> None:
    plot = make_plot("Loss", "nats", [{"step": i, "loss": 10.0**-i} for i in range(1, 4)], KEYS)
    assert plot is not None and plot.logarithmic
    ys = [y for _, y in plot.series[0].points]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1])


def test_an_axis_from_zero_starts_there() -> None:
    plot = make_plot(
        "Speed", "tokens/s", [{"step": 1, "v": 900.0}, {"step": 2, "v": 1000.0}], {"v": "v"}, from_zero=True
    )
    assert plot is not None
    assert plot.y_ticks[0].label == "0" and not plot.logarithmic


def test_values_that_are_not_finite_are_counted_instead_of_drawn() -> None:
    plot = make_plot("Loss", "nats", [*lines(3), {"step": 40, "loss": math.nan}, {"step": 50, "loss": math.inf}], KEYS)
    assert plot is not None
    assert len(plot.series[0].points) == 3 and plot.not_finite == 2


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_one_constant_value_can_be_drawn(value: float) -> None:
    plot = make_plot("Loss", "nats", [{"step": 7, "loss": value}], KEYS)
    assert plot is not None
    assert len(plot.y_ticks) >= 2 and [tick.label for tick in plot.x_ticks] == ["7"]


def test_zero_from_zero_can_be_drawn() -> None:
    assert (
        make_plot("LR", "", [{"step": 1, "lr": 0.0}, {"step": 2, "lr": 0.0}], {"lr": "lr"}, from_zero=True) is not None
    )


def test_a_very_long_run_is_thinned_to_its_ends() -> None:
    plot = make_plot("Loss", "nats", lines(5000), KEYS)
    assert plot is not None
    points = plot.series[0].points
    assert len(points) == MOST_POINTS and points[0][0] == Plot.left and points[-1][0] == Plot.right


def test_nothing_to_draw() -> None:
    assert make_plot("Loss", "nats", [], KEYS) is None
    assert make_plot("Loss", "nats", [{"step": 1, "lr": 0.1}, {"step": 2, "loss": None}], KEYS) is None
