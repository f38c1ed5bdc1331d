"""What a model answered, and what that is worth."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from beni.eval.captions import references
from beni.eval.figure import ACCURACY, FIGURES
from beni.eval.interval import numbered
from beni.eval.metrics import figure_of
from beni.sample import Metric, Sample


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one item."""

    id: str
    prediction: str
    target: str
    score: float
    """By the item's metric: the share of the credit, 0 to 1; of a caption its CIDEr-D, 0 to 10."""
    tags: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    """Why there is no answer (an unreadable image); such an item counts as wrong."""
    images: str = ""
    """Equal for items about the same images, all of them and in the same order: their answers are not independent."""
    metric: Metric = "exact"
    answers: tuple[str, ...] = ()
    """What each of several people answered, where that is known."""

    @property
    def correct(self) -> bool | None:
        """Whether it gets the whole credit; None where answers are neither right nor wrong."""
        return self.score == 1 if figure_of(self.metric).share else None

    def line(self) -> dict[str, Any]:
        """For a file of one JSON object per line."""
        return asdict(self) | {"correct": self.correct}


def summary(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The figures of all items, and of those with each value of each tag, with their 95 % intervals.

    The accuracy is None of captions alone; their own, `cider` and `bleu4`, are not there where no item is a caption.
    """
    by_tag: dict[str, list[Prediction]] = defaultdict(list)
    for p in predictions:
        for name, value in p.tags.items():
            by_tag[f"{name}={value}"].append(p)
    return {
        **_figures(predictions),
        "by_tag": {tag: _figures(these) for tag, these in sorted(by_tag.items())},
        "unreadable": sum(bool(p.error) for p in predictions),
    }


def headline(seeing: Mapping[str, Any], blind: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a summary without intervals, each followed by that of a summary with the images blanked."""
    found: dict[str, float | None] = {}
    for name in (each.name for figure in FIGURES for each in figure.all):
        if name in seeing:
            found |= {name: seeing[name], f"{name}_blind": blind[name]}
    return found


def _figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    told: dict[str, Any] = {"items": len(predictions), ACCURACY.name: None, ACCURACY.interval_name: None}
    for figure in FIGURES:
        these = [p for p in predictions if figure_of(p.metric) is figure]
        if these:
            scores_N = np.array([p.score for p in these], dtype=float)
            bounds = figure.interval(scores_N, numbered([p.images for p in these]))
            told |= {figure.name: float(scores_N.mean()), figure.interval_name: bounds and list(bounds)}
            told |= {} if len(these) == len(predictions) else {figure.items_name: len(these)}
            texts, wanted = [p.prediction for p in these], [references(p.target, p.answers) for p in these]
            told |= {each.name: each.of(texts, wanted) for each in figure.beside}
    return told


def images_of(sample: Sample) -> str:
    """Equal for items about the same images, in the same order; an item without images is like no other."""
    digest = hashlib.sha1(usedforsecurity=False)
    for key in [image.key for image in sample.images] or [f"{sample.id} has none"]:
        digest.update(key if isinstance(key, bytes) else key.encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()[:16]
