"""`predictions.jsonl`: what a run answered to each item, so that runs can be compared item by item."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from beni.errors import DataError
from beni.eval.prediction import Prediction
from beni.sample import Metric, Sample


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one item, with its images and without."""

    data: str
    """Evaluation data that it belongs to, as in the result's `evaluations`."""
    id: str
    images: str
    """Equal for items about the same images, all of them and in the same order: their answers are not independent."""
    prediction: str
    target: str
    score: float
    """By the item's metric: the share of the credit, 0 to 1; of a caption its CIDEr-D, 0 to 10."""
    blind: str
    """What is answered when the images are blanked."""
    blind_score: float
    tags: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    """Why there is no answer."""
    metric: Metric = "exact"
    answers: tuple[str, ...] = ()
    """What each of several people answered, where that is known: with the target, all that the metric compares with."""


def answers(
    items: Mapping[str, Sequence[Sample]], seeing: Sequence[Prediction], blind: Sequence[Prediction]
) -> Iterator[Answer]:
    """One for each item.

    Args:
        items: by evaluation data.
        seeing: predictions for the items of all data, one after the other.
        blind: the same, without images.

    Raises:
        ValueError: they differ in number.
    """
    named = [(name, sample) for name, samples in items.items() for sample in samples]
    for (name, sample), seen, unseen in zip(named, seeing, blind, strict=True):
        yield Answer(
            data=name,
            id=sample.id,
            images=seen.images,
            prediction=seen.prediction,
            target=seen.target,
            score=seen.score,
            blind=unseen.prediction,
            blind_score=unseen.score,
            tags=dict(seen.tags),
            error=seen.error,
            metric=seen.metric,
            answers=seen.answers,
        )


def write_answers(path: Path, found: Iterator[Answer]) -> None:
    """One JSON object per line; the file is there whole or not at all."""
    draft = path.with_name(f".{path.name}")
    with draft.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in found)
    draft.replace(path)


def read_answers(path: Path) -> list[Answer]:
    """The inverse of `write_answers`.

    Raises:
        DataError: the file was written by another version of beni.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return [_answer(json.loads(line)) for line in lines]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} has no answers that this version of beni can read: train that run again") from error


def _answer(fields: dict[str, Any]) -> Answer:
    """One of them; files of before have no `answers`."""
    return Answer(**fields | {"answers": tuple(fields.get("answers", ()))})
