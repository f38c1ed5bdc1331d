"""Batched greedy answers and exact-match accuracy."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from beni.data.batch import Pictures, Prepare, dummy_document
from beni.data.document import Composer, Document
from beni.data.images import mean_colour
from beni.errors import ImageError
from beni.eval.generate import Sampling, answer_texts
from beni.model.modeling import BeniForConditionalGeneration
from beni.processes import Processes
from beni.sample import Sample

LENGTH_STEP = 32
"""Prompts whose lengths agree up to this many tokens share a batch; inside, the order of the data is kept, so that
questions about one image stay together and the image is encoded once."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one item."""

    id: str
    prediction: str
    target: str
    correct: bool
    tags: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    """Why there is no answer (an unreadable image); such an item counts as wrong."""


def judge(
    model: BeniForConditionalGeneration,
    composer: Composer,
    samples: Sequence[Sample],
    processes: Processes,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    blind: bool = False,
    label: str = "judging",
) -> list[Prediction]:
    """Answer every item greedily and compare.

    Args:
        model: parallelized or not; every process takes part and gets all predictions.
        samples: items whose last turn is the answer.
        blind: show images of the mean colour instead: what can be guessed without looking.

    Raises:
        DataError: an item that cannot be a prompt.
    """
    prepare = blanked(composer) if blind else None
    batches = _batches([composer.compose(sample, prompt_only=True) for sample in samples], batch_size)
    own = batches[processes.rank :: processes.world]
    rounds = -(-len(batches) // processes.world)
    own += [batches[0]] * (rounds - len(own))  # everybody generates equally often; the repeated answers are the same
    was_training = model.training
    model.eval()
    found: dict[int, Prediction] = {}
    for batch in tqdm(own, desc=label, unit="batch", disable=not processes.is_main, leave=False):
        found.update(_answer(model, composer, batch, processes, max_new_tokens, prepare))
    model.train(was_training)
    merged = {number: answer for share in processes.gather(found) for number, answer in share.items()}
    return [merged[number] for number in range(len(samples))]


def summary(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Accuracy over all items and for every value of every tag."""
    by_tag: dict[str, list[bool]] = defaultdict(list)
    for p in predictions:
        for name, value in p.tags.items():
            by_tag[f"{name}={value}"].append(p.correct)
    return {
        "items": len(predictions),
        "accuracy": float(np.mean([p.correct for p in predictions])) if predictions else None,
        "by_tag": {tag: {"items": len(hits), "accuracy": float(np.mean(hits))} for tag, hits in sorted(by_tag.items())},
        "unreadable": sum(bool(p.error) for p in predictions),
    }


def subset(samples: Sequence[Sample], limit: int, seed: int = 0) -> list[Sample]:
    """Samples that can be judged (their last turn is an answer): all, or a seeded choice of `limit`, in order."""
    count = len(samples)
    order = range(count)
    if limit and limit < count:
        order = sorted(np.random.default_rng(seed).permutation(count)[:limit].tolist())  # type: ignore[assignment]
    return [s for s in (samples[i] for i in order) if s.turns[-1].role == "assistant"]


def blanked(composer: Composer) -> Prepare:
    """Replaces every image by one of its size in which there is nothing to see."""
    colour = mean_colour(next(iter(composer.encoders.values())))
    return lambda image, key: Image.new("RGB", image.size, colour)


def same(prediction: str, target: str) -> bool:
    """Exact match up to case, outer space and a final full stop."""
    return _plain(prediction) == _plain(target)


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".")


Numbered = tuple[int, Document]


def _batches(documents: Sequence[Document], size: int) -> list[list[Numbered]]:
    groups: dict[int, list[Numbered]] = defaultdict(list)
    for number, document in enumerate(documents):
        groups[-(-len(document) // LENGTH_STEP)].append((number, document))

    def cut(group: list[Numbered]) -> Iterator[list[Numbered]]:
        for start in range(0, len(group), size):
            yield group[start : start + size]

    return [batch for length in sorted(groups) for batch in cut(groups[length])]


def _answer(
    model: BeniForConditionalGeneration,
    composer: Composer,
    batch: Sequence[Numbered],
    processes: Processes,
    max_new_tokens: int,
    prepare: Prepare | None,
) -> dict[int, Prediction]:
    """Answers of a batch; an item whose image cannot be read is answered without being asked."""
    errors: dict[int, str] = {}
    pictures = Pictures(composer, prepare)
    for number, document in batch:
        try:
            for image in document.images:
                pictures.load(image)
        except ImageError as error:
            errors[number] = str(error)
    asked = [(number, document) for number, document in batch if number not in errors]
    prompts = [document for _, document in asked] or [dummy_document(composer)]  # generate as often as everybody else
    sampling = Sampling(max_new_tokens)
    texts = answer_texts(model, composer, prompts, sampling, pictures, processes.world > 1)
    answers = dict(zip((number for number, _ in asked), texts, strict=False))
    out = {}
    for number, document in batch:
        sample, text = document.sample, answers.get(number, "").strip()
        hit = number in answers and same(text, sample.answer)
        out[number] = Prediction(sample.id, text, sample.answer, hit, sample.tags, errors.get(number, ""))
    return out
