"""Answers to items, and what they are worth: greedy words, or the likeliest of given choices."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from beni.data.batch import Pictures, dummy_document
from beni.data.document import Composer, Document
from beni.data.features import FeatureStore
from beni.data.images import blank_image, image_size
from beni.errors import ImageError
from beni.eval.choice import Offered, log_likelihoods, offered, rows
from beni.eval.generate import Sampling, answer_texts
from beni.eval.metrics import check, score
from beni.eval.prediction import Prediction, images_of
from beni.model.modeling import BeniForConditionalGeneration
from beni.processes import Processes
from beni.progress import bar
from beni.sample import ImageRef, Sample

LENGTH_STEP = 32
"""Prompts whose lengths agree up to this many tokens share a batch; inside, the order of the data is kept, so that
questions about one image stay together and the image is encoded once."""


@dataclass(frozen=True, slots=True)
class Said:
    """A model's answer to an item, not judged yet; or why there is none."""

    text: str
    error: str = ""


def judge(
    model: BeniForConditionalGeneration,
    composer: Composer,
    samples: Sequence[Sample],
    processes: Processes,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    blind: bool = False,
    label: str = "judging",
    features: FeatureStore | None = None,
) -> list[Prediction]:
    """Answer every item and compare, each by its metric.

    Args:
        model: parallelized or not; every process takes part and gets all predictions.
        samples: items whose last turn is the answer; of one evaluation: captions are weighed against each other.
        batch_size: questions answered at a time.
        max_new_tokens: longest answer in tokens.
        blind: show images of the mean colour instead: what can be guessed without looking.
        label: of the progress bar.
        features: has what the encoders make of each image, the blank ones too; None: encoders see them.

    Raises:
        DataError: an item that cannot be a prompt, or not be judged by its metric.
        ConfigError: a metric needs a package that is not installed.
    """
    check(samples)
    shown = [blanked(sample, composer) for sample in samples] if blind else samples
    asked = {n: composer.compose(s, prompt_only=True) for n, s in enumerate(shown) if s.metric != "choice"}
    offers = {n: offered(s, composer) for n, s in enumerate(shown) if s.metric == "choice"}

    def answer(batch: Sequence[Numbered]) -> dict[int, Said]:
        return _answer(model, Pictures(composer, features=features), batch, processes, max_new_tokens)

    def choose(row: Mapping[int, Offered]) -> dict[int, Said]:
        return _choose(model, Pictures(composer, features=features), row)

    was_training = model.training
    model.eval()
    said = _shared_out(answer, _batches(asked, batch_size), processes, label)
    said |= _shared_out(choose, list(rows(offers)), processes, label)
    model.train(was_training)
    return _judged(samples, [said[number] for number in range(len(samples))])


Work = TypeVar("Work")


def _shared_out(
    do: Callable[[Work], dict[int, Said]], work: Sequence[Work], processes: Processes, label: str
) -> dict[int, Said]:
    """Do a part of the work in each process, and give everything to all; everybody computes equally often."""
    own = list(work[processes.rank :: processes.world])
    own += work[: -(-len(work) // processes.world) - len(own)]  # done twice it is the same
    said: dict[int, Said] = {}
    for each in bar(own, desc=label, unit="batch", shown=processes.is_main, leave=False):
        said |= do(each)
    return {number: answer for share in processes.gather(said) for number, answer in share.items()}


def _judged(samples: Sequence[Sample], said: Sequence[Said]) -> list[Prediction]:
    worth = score([each.text for each in said], samples)
    return [
        Prediction(
            id=sample.id,
            prediction=each.text,
            target=sample.answer,
            score=0.0 if each.error else gets,
            tags=sample.tags,
            error=each.error,
            images=images_of(sample),
            metric=sample.metric,
            answers=sample.answers,
        )
        for sample, each, gets in zip(samples, said, worth, strict=True)
    ]


def subset(samples: Sequence[Sample], limit: int, seed: int = 0) -> list[Sample]:
    """Samples that can be judged (their last turn is an answer): all, or a seeded choice of `limit`, in order."""
    count = len(samples)
    order = range(count)
    if limit and limit < count:
        order = sorted(np.random.default_rng(seed).permutation(count)[:limit].tolist())  # type: ignore[assignment]
    return [s for s in (samples[i] for i in order) if s.turns[-1].role == "assistant"]


def blanked(sample: Sample, composer: Composer) -> Sample:
    """The same, each image replaced by one of its size in which there is nothing to see.

    Those of one size are one image, which is encoded once. What cannot be read stays as it is.
    """
    return replace(sample, images=tuple(_blank(ref, composer) for ref in sample.images))


def _blank(ref: ImageRef, composer: Composer) -> ImageRef:
    try:
        return blank_image(next(iter(composer.encoders.values())), image_size(ref))
    except ImageError:
        return ref


Numbered = tuple[int, Document]


def _batches(documents: Mapping[int, Document], size: int) -> list[list[Numbered]]:
    groups: dict[int, list[Numbered]] = defaultdict(list)
    for number, document in documents.items():
        groups[-(-len(document) // LENGTH_STEP)].append((number, document))

    def cut(group: list[Numbered]) -> Iterator[list[Numbered]]:
        for start in range(0, len(group), size):
            yield group[start : start + size]

    return [batch for length in sorted(groups) for batch in cut(groups[length])]


def _answer(
    model: BeniForConditionalGeneration,
    pictures: Pictures,
    batch: Sequence[Numbered],
    processes: Processes,
    max_new_tokens: int,
) -> dict[int, Said]:
    """Answers of a batch; an item whose image cannot be read is answered without being asked."""
    composer = pictures.composer
    errors = _unreadable(pictures, dict(batch))
    asked = [(number, document) for number, document in batch if number not in errors]
    prompts = [document for _, document in asked] or [dummy_document(composer)]  # generate as often as everybody else
    texts = answer_texts(model, composer, prompts, Sampling(max_new_tokens), pictures, processes.world > 1)
    answers = zip((number for number, _ in asked), texts, strict=False)
    return errors | {number: Said(text.strip()) for number, text in answers}


def _choose(model: BeniForConditionalGeneration, pictures: Pictures, row: Mapping[int, Offered]) -> dict[int, Said]:
    """The likeliest choice of each item."""
    errors = _unreadable(pictures, {number: documents[0] for number, documents in row.items()})
    asked = {number: documents for number, documents in row.items() if number not in errors}
    found = log_likelihoods(model, pictures.composer, list(asked.values()), pictures)
    return errors | {
        number: Said(documents[int(np.argmax(likely))].sample.answer)
        for (number, documents), likely in zip(asked.items(), found, strict=True)
    }


def _unreadable(pictures: Pictures, documents: Mapping[int, Document]) -> dict[int, Said]:
    """Loads the images of documents; returns those that have one that cannot be loaded."""
    errors = {}
    for number, document in documents.items():
        try:
            for image in document.images:
                pictures.load(image)
        except ImageError as error:
            errors[number] = Said("", str(error))
    return errors
