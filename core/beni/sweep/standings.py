"""What the runs of a sweep say of its cells: what they reach, with intervals, differences, costs, and who leads."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from beni.errors import DataError
from beni.eval.answers import Answer, read_answers
from beni.eval.figure import ACCURACY, FIGURES, Figure, leading
from beni.eval.interval import numbered
from beni.eval.metrics import figure_of
from beni.sweep.bootstrap import draws, interval
from beni.sweep.cells import Cell

MOST_COMPARED = 12
"""Cells of which every two are compared."""
NEEDED = ("steps", "parameters")
"""What no result may lack; figures may."""
LEAST_SEEDS = 3
"""With fewer, drawing seeds again says next to nothing of other seeds, and no difference is called clear."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that has ended."""

    seed: int
    folder: Path
    result: Mapping[str, Any]
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class Difference:
    """How two cells, or one with and without its pictures, differ on the same items."""

    more: float
    """By how much the first reaches more."""
    interval: tuple[float, float]
    seeds: int
    """Of the one that has fewer."""

    @property
    def carried(self) -> bool:
        """Whether there are seeds enough for an interval over seeds."""
        return self.seeds >= LEAST_SEEDS

    @property
    def clear(self) -> bool:
        """Whether the interval is one over seeds, and all on one side of zero."""
        low, high = self.interval
        return self.carried and (low > 0 or high < 0)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a cell."""

    cell: Cell
    runs: Sequence[Ran]
    lr: float
    """Peak learning rate of parts from random weights: of the cell, or the one that was chosen for it."""
    quality: float | None
    """Mean over seeds and items of the figure that the sweep compares."""
    interval: tuple[float, float] | None
    """Of the quality, over seeds and items."""
    blind: float | None
    added: Difference | None
    """What the pictures add to the blind figure."""
    behind: float | None
    """How much less it reaches than the first; None for cells that were judged on other items."""
    behind_interval: tuple[float, float] | None
    front: bool
    """Whether no other cell is at least as good and at least as cheap, and better in one of them."""
    leading: bool
    """Whether it is the first, or not clearly behind it, where others clearly are."""

    @property
    def looks(self) -> bool:
        """Whether what was trained is clearly better with pictures than without; so is all that has none to look at."""
        return self.added is None or self.added.interval[0] > 0

    def mean(self, figure: str) -> float | None:
        """A figure of the result: the mean over seeds."""
        return _mean(self.runs, figure)

    def cost(self, figure: str) -> float | None:
        """A figure of the result: the median over seeds, since other work on a machine disturbs some of them.

        Of runs that were continued only a part was measured, and of some nobody noted how much: they count only if all
        are such.
        """
        return _median(self.runs, figure)

    @property
    def parameters(self) -> int:
        return self.runs[0].result["parameters"]["total"]

    @property
    def trained(self) -> int:
        return self.runs[0].result["parameters"]["trainable"]


@dataclass(frozen=True, slots=True)
class Standings:
    """All cells that have a run, the best first; behind them those that lack the figure, by what else they have."""

    rows: Sequence[Standing]
    differences: Mapping[tuple[int, int], Difference]
    """Between rows by their places: all of them, or only those to the first where there are many."""
    figure: Figure = ACCURACY
    """What is compared; answers that add to another one are left out of all but `Standing.mean`."""

    @property
    def seeds(self) -> int:
        """Most seeds of a cell."""
        return max((len(row.runs) for row in self.rows), default=0)

    @property
    def ranked(self) -> Sequence[Standing]:
        """Rows that have the figure."""
        return [row for row in self.rows if row.quality is not None]


def read_run(folder: Path, seed: int) -> Ran:
    """A run from its folder, which has a result.

    Raises:
        DataError: the result is damaged, or another version of beni wrote it, which did not note what is needed.
    """
    file = folder / "result.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        lacking = [name for name in NEEDED if name not in result]
    except (TypeError, ValueError) as error:
        raise DataError(f"{file} is damaged: delete {folder}, and the same command trains that run again") from error
    if lacking:
        raise DataError(
            f"{file} lacks {', '.join(lacking)}, as if another version of beni had written it: delete {folder}, and "
            f"the same command trains that run again"
        )
    return Ran(seed, folder, result, read_answers(folder / "predictions.jsonl"))


def stand(found: Sequence[tuple[Cell, float, Sequence[Ran]]]) -> Standings:
    """Compare cells.

    Args:
        found: each with its learning rate and its runs, one at least.

    Raises:
        DataError: runs of a cell were judged on different items.
    """
    figure = _compared([run for _, _, runs in found for run in runs])
    found = [(cell, lr, [_only(figure, run) for run in runs]) for cell, lr, runs in found]
    drawn = _draws([runs for _, _, runs in found])
    means = [_mean(runs, figure.name) for _, _, runs in found]
    order = sorted(range(len(found)), key=lambda n: _best_first(found[n][2], figure))
    behinds = [_difference(drawn, means, order[0], n) for n in order]
    leaders = not_clearly_behind(behinds)
    front = pareto([(means[n], _median(found[n][2], "flops_per_sample")) for n in order])
    rows: list[Standing] = []
    for place, n in enumerate(order):
        cell, lr, runs = found[n]
        behind = behinds[place]
        rows.append(
            Standing(
                cell=cell,
                runs=runs,
                lr=lr,
                quality=means[n],
                interval=interval(drawn[n].reached_R) if n in drawn else None,
                blind=_mean(runs, f"{figure.name}_blind"),
                added=_added(runs, drawn.get(n), figure),
                behind=behind.more if behind else None,
                behind_interval=behind.interval if behind else None,
                front=place in front,
                leading=place in leaders,
            )
        )
    compared = range(len(order) if len(order) <= MOST_COMPARED else 1)
    between = {
        (one, other): difference
        for one in compared
        for other in range(len(order))
        if one != other and (difference := _difference(drawn, means, order[one], order[other]))
    }
    return Standings(rows, between, figure)


def not_clearly_behind(first: Sequence[Difference | None]) -> set[int]:
    """Who is first or not clearly behind; nobody, if none clearly is. Those with too few seeds to say are left out.

    Args:
        first: by how much the first reaches more than each, itself among them.
    """
    known = {number: each for number, each in enumerate(first) if each is not None and each.carried}
    clearly = {number for number, each in known.items() if each.clear}
    return known.keys() - clearly if clearly else set()


def _compared(runs: Sequence[Ran]) -> Figure:
    """The accuracy, where there is any."""
    return leading({name: value for run in runs for name, value in run.result.items() if value is not None})


def _only(figure: Figure, run: Ran) -> Ran:
    """A run with those answers alone that add to a figure."""
    return replace(run, answers=[answer for answer in run.answers if figure_of(answer.metric) is figure])


def pareto(points: Sequence[tuple[float | None, float | None]]) -> set[int]:
    """Which of (quality, cost) no other point dominates by being as good and as cheap, and better in one of them."""
    known = [(n, quality, cost) for n, (quality, cost) in enumerate(points) if quality is not None and cost is not None]
    return {
        n
        for n, quality, cost in known
        if not any(q >= quality and c <= cost and (q > quality or c < cost) for _, q, c in known)
    }


Items = tuple[tuple[str, str, str, str], ...]
"""What tells the items of an evaluation from those of another."""


class Drawn(NamedTuple):
    """A cell, its items and seeds drawn again."""

    items: Items
    seeds: int
    reached_R: Float[np.ndarray, " R"]
    """Mean scores."""
    added_R: Float[np.ndarray, " R"]
    """What pictures add to them."""


def _draws(cells: Sequence[Sequence[Ran]]) -> dict[int, Drawn]:
    """Cells that were judged on the same items are drawn together."""
    together: dict[Items, list[int]] = defaultdict(list)
    for number, runs in enumerate(cells):
        first, *others = (items_of(run.answers) for run in runs)
        if any(items != first for items in others):
            raise DataError(
                f"{runs[0].folder.parent} holds seeds that were judged on different items: the data has changed since "
                f"the first was trained. Delete that folder, or choose another --out"
            )
        together[first].append(number)
    found: dict[int, Drawn] = {}
    for items, numbers in together.items():
        if not items:
            continue
        groups = numbered([answer.images for answer in cells[numbers[0]][0].answers])
        scores = [np.array([[a.score for a in run.answers] for run in cells[n]], dtype=float) for n in numbers]
        blind = [np.array([[a.blind_score for a in run.answers] for run in cells[n]], dtype=float) for n in numbers]
        reached = draws(scores, groups)
        added = draws([seeing - guessed for seeing, guessed in zip(scores, blind, strict=True)], groups)
        found |= {n: Drawn(items, len(cells[n]), *rows) for n, *rows in zip(numbers, reached, added, strict=True)}
    return found


def items_of(answers: Sequence[Answer]) -> Items:
    """What was judged."""
    return tuple((answer.data, answer.id, answer.images, answer.target) for answer in answers)


def _best_first(runs: Sequence[Ran], figure: Figure) -> list[tuple[bool, float]]:
    """Sorts cells by a figure; those without it come last, by the others in turn."""
    means = [_mean(runs, each.name) for each in (figure, *FIGURES)]
    return [(mean is None, -(mean or 0.0)) for mean in means]


def _difference(drawn: Mapping[int, Drawn], means: Sequence[float | None], one: int, other: int) -> Difference | None:
    first, second = means[one], means[other]
    if one not in drawn or other not in drawn or drawn[one].items != drawn[other].items:
        return None
    if first is None or second is None:
        return None
    between = interval(drawn[one].reached_R - drawn[other].reached_R)
    return Difference(first - second, between, min(drawn[one].seeds, drawn[other].seeds))


def _added(runs: Sequence[Ran], drawn: Drawn | None, figure: Figure) -> Difference | None:
    """None where there are no pictures, or nothing was judged."""
    seeing, blind = _mean(runs, figure.name), _mean(runs, f"{figure.name}_blind")
    if drawn is None or seeing is None or blind is None or not _median(runs, "visual_tokens_per_image"):
        return None
    return Difference(seeing - blind, interval(drawn.added_R), len(runs))


def _mean(runs: Sequence[Ran], figure: str) -> float | None:
    known = [run.result[figure] for run in runs if run.result.get(figure) is not None]
    return fmean(known) if known else None


def _median(runs: Sequence[Ran], figure: str) -> float | None:
    whole = [run for run in runs if run.result.get("measured_steps") == run.result["steps"]]
    known = [run.result[figure] for run in whole or runs if run.result.get(figure) is not None]
    return median(known) if known else None
