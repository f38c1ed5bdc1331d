"""What cells reach on each kind of item, such as `type=counting`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from beni.eval.answers import Answer
from beni.eval.interval import numbered
from beni.sweep.bootstrap import draws, interval
from beni.sweep.standings import Difference, Standing, items_of, not_clearly_behind

MOST = 40
"""Kinds told, the most frequent ones."""
DRAWS = 1000
"""Enough to say what is clear; there are many kinds."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What a cell reaches on the items of a kind: means over seeds and items."""

    quality: float
    blind: float
    items: int
    leading: bool
    """Whether it is the first, or not clearly behind it, where others clearly are."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Items that have a tag."""

    tag: str
    """`name=value`."""
    reached: Sequence[Reached | None]
    """By cell; None for one that was judged on no such item."""

    @property
    def items(self) -> Sequence[int]:
        """How many there are: one number, unless cells were judged on different items."""
        return sorted({each.items for each in self.reached if each is not None})


def by_kind(rows: Sequence[Standing]) -> list[Kind]:
    """Kinds of items, the most frequent ones first."""
    tagged = [_tagged(row.runs[0].answers) for row in rows]
    tags = list(dict.fromkeys(tag for found in tagged for tag in found))[:MOST]
    return [_kind(tag, rows, [found.get(tag, ()) for found in tagged]) for tag in tags]


def _tagged(answers: Sequence[Answer]) -> Mapping[str, Sequence[int]]:
    """Places of the items that have a tag, by tag, the most frequent ones first."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        for name, value in answer.tags.items():
            found[f"{name}={value}"].append(place)
    return {tag: found[tag] for tag in sorted(found, key=lambda tag: (-len(found[tag]), tag))}


def _kind(tag: str, rows: Sequence[Standing], places: Sequence[Sequence[int]]) -> Kind:
    """`places` of its items, by cell."""
    seen = {n: [[run.answers[at] for at in places[n]] for run in row.runs] for n, row in enumerate(rows) if places[n]}
    scores = {n: np.array([[a.score for a in answers] for answers in runs], dtype=float) for n, runs in seen.items()}
    blind = {n: float(np.mean([[a.blind_score for a in answers] for answers in runs])) for n, runs in seen.items()}
    first = max(scores, key=lambda n: scores[n].mean())
    alike = [n for n in scores if items_of(seen[n][0]) == items_of(seen[first][0])]
    behind = _behind(first, {n: scores[n] for n in alike}, seen[first][0])
    leading = not_clearly_behind([behind.get(n) for n in range(len(rows))])
    return Kind(
        tag,
        [
            Reached(float(scores[n].mean()), blind[n], len(places[n]), n in leading) if n in scores else None
            for n in range(len(rows))
        ],
    )


def _behind(
    first: int, scores: Mapping[int, Float[np.ndarray, "_ N"]], items: Sequence[Answer]
) -> dict[int, Difference]:
    """How far cells are behind one of them on the same items."""
    groups = numbered([item.images for item in items])
    drawn = dict(zip(scores, draws(list(scores.values()), groups, DRAWS), strict=True))
    return {
        n: Difference(
            more=float(scores[first].mean() - scores_SN.mean()),
            interval=interval(drawn[first] - drawn[n]),
            seeds=min(len(scores[first]), len(scores_SN)),
        )
        for n, scores_SN in scores.items()
    }
