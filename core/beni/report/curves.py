"""Curves as geometry: what a template needs to draw a plot with axes, ticks and titles on hover."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from beni.report.figures import decimal, whole

MOST_POINTS = 1000
"""Points drawn of one series; of a longer one evenly chosen points, the first and the last among them."""
LOG_RATIO = 20
"""A positive quantity that varies by more than this factor gets a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: its place in the drawing and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot, in drawing coordinates."""

    label: str
    number: int
    """Chooses the colour."""
    points: tuple[tuple[float, float], ...]

    @property
    def path(self) -> str:
        """The `points` attribute of an SVG polyline."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, slots=True)
class Hover:
    """A strip of the plot that shows the values at one place: its left edge, width, text and the points it marks."""

    left: float
    width: float
    title: str
    points: tuple[tuple[float, float, int], ...]
    """x, y and the number of the series."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Everything a template draws; lengths in units of the SVG's viewBox."""

    title: str
    unit: str
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    hovers: tuple[Hover, ...]
    not_finite: int
    """Values left out because they are not finite."""
    logarithmic: bool
    along: str
    """What the horizontal axis counts."""

    width = 560
    height = 274
    left = 78
    right = 530
    top = 12
    bottom = 224


def make_plot(
    title: str,
    unit: str,
    metrics: Sequence[Mapping[str, Any]],
    keys: Mapping[str, str],
    from_zero: bool = False,
    along: str = "step",
) -> Plot | None:
    """A plot over steps or something else, or None if no line holds any of the values.

    Args:
        title: heading.
        unit: of the vertical axis.
        metrics: lines of metrics.jsonl; a line holds some of the keys.
        keys: key → label, one series each; the position chooses the colour.
        from_zero: the vertical axis starts at zero and is linear.
        along: key of what the horizontal axis counts, and its label.
    """
    raw = {key: [(line[along], line[key]) for line in metrics if line.get(key) is not None] for key in keys}
    finite = {key: [(x, y) for x, y in points if math.isfinite(y)] for key, points in raw.items()}
    drawn = {key: _thin(points) for key, points in finite.items() if points}
    if not drawn:
        return None
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    logarithmic = not from_zero and min(ys) > 0 and max(ys) > LOG_RATIO * min(ys)
    y_values = log_ticks(min(ys), max(ys)) if logarithmic else ticks(0.0 if from_zero else min(ys), max(ys))
    x_values = [x for x in ticks(min(xs), max(xs)) if x == round(x) and min(xs) <= x <= max(xs)] or [max(xs)]

    def scale_x(x: float) -> float:
        share = (x - min(xs)) / (max(xs) - min(xs)) if max(xs) > min(xs) else 0.5
        return Plot.left + share * (Plot.right - Plot.left)

    def scale_y(y: float) -> float:
        low, high, at = y_values[0], y_values[-1], y
        if logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return Plot.bottom - (at - low) / (high - low) * (Plot.bottom - Plot.top)

    numbers = {key: number for number, key in enumerate(keys)}
    by_step: dict[float, list[_Mark]] = {}
    for key, points in drawn.items():
        for x, y in points:
            text = f"{keys[key]}: {decimal(y)}"
            by_step.setdefault(x, []).append(_Mark(scale_x(x), scale_y(y), numbers[key], text))
    return Plot(
        title=title,
        unit=unit,
        series=tuple(
            Series(keys[key], numbers[key], tuple((scale_x(x), scale_y(y)) for x, y in points))
            for key, points in drawn.items()
        ),
        x_ticks=tuple(Tick(scale_x(x), whole(x)) for x in x_values),
        y_ticks=tuple(Tick(scale_y(y), f"{y:,.0f}" if abs(y) >= 1000 else f"{y:.3g}") for y in y_values),
        hovers=_hovers(by_step, along),
        not_finite=sum(len(raw[key]) - len(finite[key]) for key in keys),
        logarithmic=logarithmic,
        along=along,
    )


class _Mark(NamedTuple):
    """One value in the drawing."""

    x: float
    y: float
    number: int
    text: str


def _hovers(by_step: Mapping[float, Sequence[_Mark]], along: str) -> tuple[Hover, ...]:
    """A strip around each step; together they cover the plot."""
    steps = sorted(by_step)
    places = [by_step[step][0].x for step in steps]
    edges = [float(Plot.left), *((a + b) / 2 for a, b in pairwise(places)), float(Plot.right)]
    return tuple(
        Hover(
            left,
            right - left,
            "\n".join([f"{along} {whole(step)}", *(mark.text for mark in by_step[step])]),
            tuple((mark.x, mark.y, mark.number) for mark in by_step[step]),
        )
        for step, (left, right) in zip(steps, pairwise(edges), strict=True)
    )


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MOST_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose a range."""
    if high <= low:
        pad = abs(low) / 2 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose a range, or powers alone where those would be too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    multiples = (1, 2, 5) if last - first <= 2 else (1,)
    marks = [m * 10.0**power for power in range(first, last + 1) for m in multiples]
    begin = max(i for i, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    end = min((i for i, mark in enumerate(marks) if mark >= high * (1 - 1e-9)), default=len(marks) - 1)
    return marks[begin : end + 1]
