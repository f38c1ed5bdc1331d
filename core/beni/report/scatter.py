"""Quality against cost as geometry: numbered points with intervals, and the front that nothing dominates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from beni.eval.figure import ACCURACY, Figure
from beni.report.curves import LOG_RATIO, Tick, log_ticks, ticks
from beni.report.figures import bounds, hundredfold, operations


@dataclass(frozen=True, slots=True)
class Spot:
    """What is drawn of one combination."""

    number: int
    name: str
    cost: float
    quality: float
    low: float
    """The interval of the quality, and `high`."""
    high: float
    front: bool


@dataclass(frozen=True, slots=True)
class Placed:
    """A spot in the drawing."""

    spot: Spot
    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """Everything a template draws; lengths in units of the SVG's viewBox."""

    spots: tuple[Placed, ...]
    front: str
    """The `points` attribute of the line through the front."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    logarithmic: bool
    """Whether costs have a logarithmic axis."""

    width = 640
    height = 400
    left = 62
    right = 616
    top = 16
    bottom = 340


def make_scatter(spots: Sequence[Spot], figure: Figure = ACCURACY) -> Scatter | None:
    """A drawing of qualities over costs, or None of fewer than two.

    Args:
        spots: what is drawn.
        figure: what their quality is.
    """
    if len(spots) < 2:
        return None
    costs = [spot.cost for spot in spots]
    logarithmic = min(costs) > 0 and max(costs) > LOG_RATIO * min(costs)
    x_values = log_ticks(min(costs), max(costs)) if logarithmic else ticks(min(costs), max(costs))
    y_values = ticks(min(spot.low for spot in spots), max(spot.high for spot in spots))
    y_values = [y for y in y_values if y >= -1e-9 and (y <= 1 + 1e-9 or not figure.share)]

    def x(cost: float) -> float:
        low, high, at = x_values[0], x_values[-1], cost
        if logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return Scatter.left + (at - low) / (high - low) * (Scatter.right - Scatter.left)

    def y(quality: float) -> float:
        low, high = min(y_values[0], *(s.low for s in spots)), max(y_values[-1], *(s.high for s in spots))
        return Scatter.bottom - (quality - low) / (high - low) * (Scatter.bottom - Scatter.top)

    placed = [
        Placed(
            spot,
            x(spot.cost),
            y(spot.quality),
            y(spot.low),
            y(spot.high),
            f"{spot.name}\n{hundredfold(spot.quality, figure.unit)} ({bounds((spot.low, spot.high))})\n"
            f"{operations(spot.cost)}FLOPs per sample",
        )
        for spot in spots
    ]
    on_front = sorted((each for each in placed if each.spot.front), key=lambda each: each.x)
    return Scatter(
        spots=tuple(placed),
        front=" ".join(f"{each.x:.1f},{each.y:.1f}" for each in on_front),
        x_ticks=tuple(Tick(x(value), operations(value).strip()) for value in x_values),
        y_ticks=tuple(Tick(y(value), f"{100 * value:.3g}{figure.unit}") for value in y_values),
        logarithmic=logarithmic,
    )
