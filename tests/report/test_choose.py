from dataclasses import replace

import pytest

from beni.eval.prediction import Prediction
from beni.report import choose_shown
from beni.sample import Sample, Turn


def judged(wrong: int, right: int) -> tuple[list[Sample], list[Prediction]]:
    samples = [Sample(str(i), (Turn("user", ("?",)), Turn("assistant", ("yes",)))) for i in range(wrong + right)]
    predictions = [Prediction(s.id, "yes", "yes", score=float(i >= wrong)) for i, s in enumerate(samples)]
    return samples, predictions


@pytest.mark.parametrize(
    ("wrong", "right", "from_wrong", "from_right"),
    [(50, 50, 12, 12), (3, 50, 3, 21), (50, 3, 21, 3), (2, 3, 2, 3), (0, 50, 0, 24), (0, 0, 0, 0)],
)
def test_half_are_wrong_where_there_are_enough(wrong: int, right: int, from_wrong: int, from_right: int) -> None:
    shown = choose_shown(*judged(wrong, right))
    assert sum(not p.correct for _, p in shown) == from_wrong
    assert sum(p.correct for _, p in shown) == from_right


def test_of_captions_the_choice_is_any() -> None:
    samples, predictions = judged(50, 50)
    shown = choose_shown(samples, [replace(p, metric="caption") for p in predictions], count=40)
    assert 8 < sum(p.score for _, p in shown) < 32 and all(p.correct is None for _, p in shown)


def test_the_choice_is_seeded_and_pairs_belong_together() -> None:
    samples, predictions = judged(100, 100)
    first = choose_shown(samples, predictions, count=10, seed=1)
    assert first == choose_shown(samples, predictions, count=10, seed=1)
    assert first != choose_shown(samples, predictions, count=10, seed=2)
    assert all(s.id == p.id for s, p in first)
    assert len({s.id for s, _ in first}) == 10


def test_samples_without_their_predictions_are_refused() -> None:
    samples, predictions = judged(2, 2)
    with pytest.raises(ValueError):
        choose_shown(samples, predictions[:-1])
