"""The learning rate over a run, for every schedule."""

from itertools import pairwise

import pytest

from beni.errors import ConfigError
from beni.options import OptimConfig
from beni.training.schedule import lr_factor

TOTAL = 100
SCHEDULES = ("cosine", "linear", "constant", "wsd")


def factors(schedule: str, **options: float) -> list[float]:
    optim = OptimConfig(schedule=schedule, **{"warmup": 0.1, **options})  # type: ignore[arg-type]
    return [lr_factor(step, TOTAL, optim) for step in range(TOTAL)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rises_in_a_straight_line_to_one_and_never_again(schedule: str) -> None:
    values = factors(schedule)
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(a >= b for a, b in pairwise(values[9:]))
    assert min(values) > 0 and max(values) == 1


def test_ends() -> None:
    last = {schedule: factors(schedule)[-1] for schedule in SCHEDULES}
    assert last["constant"] == 1
    assert last["linear"] == pytest.approx(1 / 90)
    assert last["wsd"] == pytest.approx(1 / 20)
    assert last["cosine"] < 1e-3


def test_halfway_down() -> None:
    """Step 55 is the middle of what is behind the rise; wsd falls in the last fifth, or in as much as it is told."""
    assert factors("cosine")[55] == pytest.approx(0.5) == factors("linear")[55]
    wsd = factors("wsd")
    assert wsd[10:81] == [1.0] * 71 and wsd[90] == pytest.approx(0.5)
    assert factors("wsd", decay=0.5)[75] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_short_runs_take_steps_of_some_size(schedule: str) -> None:
    optim = OptimConfig(schedule=schedule)  # type: ignore[arg-type]
    assert [lr_factor(0, 1, optim)] == [1.0]
    assert all(0 < lr_factor(step, 3, optim) <= 1 for step in range(3))


def test_a_rise_and_a_fall_that_overlap_are_refused() -> None:
    with pytest.raises(ConfigError, match="together at most 1"):
        OptimConfig(schedule="wsd", warmup=0.5, decay=0.6)
