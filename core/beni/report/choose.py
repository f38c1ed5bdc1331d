"""Which predictions a report shows."""

from collections.abc import Sequence

import numpy as np

from beni.eval.prediction import Prediction
from beni.sample import Sample


def choose_shown(
    samples: Sequence[Sample], predictions: Sequence[Prediction], count: int = 24, seed: int = 0
) -> list[tuple[Sample, Prediction]]:
    """A seeded choice of items, half wrong and half right where there are enough of both and answers are either.

    Args:
        samples: the judged items.
        predictions: their answers, in the same order.
        count: most items chosen.
        seed: of the choice.

    Returns:
        Pairs in the order of the data.

    Raises:
        ValueError: samples and predictions differ in number.
    """
    pairs = list(zip(samples, predictions, strict=True))
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    wrong = [index for index in order if pairs[index][1].score < 0.5 and pairs[index][1].correct is not None]
    known = set(wrong)
    right = [index for index in order if index not in known]
    from_wrong = min(len(wrong), max(count // 2, count - len(right)))
    chosen = wrong[:from_wrong] + right[: count - from_wrong]
    return [pairs[index] for index in sorted(chosen)]
