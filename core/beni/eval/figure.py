"""What the mean of what answers get is called: an accuracy, or of captions CIDEr-D."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from beni.eval.captions import BEST, bleu4
from beni.eval.interval import clustered, student


class Beside(NamedTuple):
    """A figure of all answers together that is no mean over items, told beside one that is."""

    name: str
    """Its key in result.json; with the images blanked, `NAME_blind`."""
    title: str
    of: Callable[[Sequence[str], Sequence[Sequence[str]]], float]
    """Of the answers and the references of each item."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over items of what their answers get. Pages show it, and what is beside it, times 100."""

    name: str
    """Its key in result.json; with the images blanked, `NAME_blind`."""
    title: str
    interval_name: str
    """Key of its interval."""
    interval: Callable[[Float[np.ndarray, " N"], Int[np.ndarray, " N"]], tuple[float, float] | None]
    """The 95 % interval of the mean, of scores and of the numbers of the images they are about."""
    share: bool
    """Whether scores are shares of a credit, 0 to 1, so that one is right and the other is wrong."""
    beside: tuple[Beside, ...] = ()

    @property
    def items_name(self) -> str:
        """Key of how many items have it, where others have another figure."""
        return f"{self.name}_items"

    @property
    def all(self) -> "tuple[Figure | Beside, ...]":
        """Itself, and what is told beside it."""
        return self, *self.beside

    @property
    def unit(self) -> str:
        """What stands behind it on a page."""
        return " %" if self.share else ""


def _of_cider(scores_N: Float[np.ndarray, " N"], groups_N: Int[np.ndarray, " N"]) -> tuple[float, float] | None:
    bounds = student(scores_N, groups_N)
    return bounds and (bounds[0], min(bounds[1], BEST))


ACCURACY = Figure("accuracy", "accuracy", "interval", clustered, share=True)
CIDER = Figure("cider", "CIDEr-D", "cider_interval", _of_cider, share=False, beside=(Beside("bleu4", "BLEU-4", bleu4),))
FIGURES = (ACCURACY, CIDER)


def leading(told: Mapping[str, Any]) -> Figure:
    """The first figure that a result, or a summary of predictions, has; the accuracy if it has none."""
    return next((each for each in FIGURES if told.get(each.name) is not None), ACCURACY)
