"""What a model answered, and what that is worth."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from beni.eval.interval import clustered, numbered
from beni.sample import Sample


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one item."""

    id: str
    prediction: str
    target: str
    score: float
    """The share of the credit, 0 to 1, by the item's metric."""
    tags: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    """Why there is no answer (an unreadable image); such an item counts as wrong."""
    images: str = ""
    """Equal for items about the same images, all of them and in the same order: their answers are not independent."""

    @property
    def correct(self) -> bool:
        """Whether it gets the whole credit."""
        return self.score == 1

    def line(self) -> dict[str, Any]:
        """For a file of one JSON object per line."""
        return asdict(self) | {"correct": self.correct}


def summary(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Accuracy over all items and for every value of every tag, each with its 95 % interval (`clustered`)."""
    by_tag: dict[str, list[Prediction]] = defaultdict(list)
    for p in predictions:
        for name, value in p.tags.items():
            by_tag[f"{name}={value}"].append(p)
    return {
        **_accuracy(predictions),
        "by_tag": {tag: _accuracy(these) for tag, these in sorted(by_tag.items())},
        "unreadable": sum(bool(p.error) for p in predictions),
    }


def _accuracy(predictions: Sequence[Prediction]) -> dict[str, Any]:
    if not predictions:
        return {"items": 0, "accuracy": None, "interval": None}
    scores_N = np.array([p.score for p in predictions], dtype=float)
    groups_N = numbered([p.images for p in predictions])
    return {
        "items": len(predictions),
        "accuracy": float(scores_N.mean()),
        "interval": list(clustered(scores_N, groups_N)),
    }


def images_of(sample: Sample) -> str:
    """Equal for items about the same images, in the same order; an item without images is like no other."""
    digest = hashlib.sha1(usedforsecurity=False)
    for key in [image.key for image in sample.images] or [f"{sample.id} has none"]:
        digest.update(key if isinstance(key, bytes) else key.encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()[:16]
