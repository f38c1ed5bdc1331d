"""Standings: order, differences, the front."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beni.errors import DataError
from beni.eval.figure import ACCURACY, CIDER
from beni.sweep.kinds import by_kind
from beni.sweep.standings import MOST_COMPARED, Ran, pareto, read_run, stand
from tests.sweep.runs import answered, captioned, cell, ran

ITEMS = 400


def right(count: int) -> np.ndarray:
    return np.arange(ITEMS) < count


def test_the_most_accurate_leads_and_others_are_behind_it() -> None:
    standings = stand(
        [
            (cell("mlp"), 1e-3, [ran(right(200), flops=1e6, seed=n) for n in range(3)]),
            (cell("perceiver"), 1e-4, [ran(right(300 + 20 * n), flops=3e6, seed=n) for n in range(3)]),
            (cell("sva"), 1e-4, [ran(right(200), flops=2e6)]),
        ]
    )
    first, second, third = standings.rows
    assert first.cell.name == "perceiver" and first.lr == 1e-4 and standings.seeds == 3
    assert first.quality == pytest.approx(0.8) and first.interval[0] < 0.75 < 0.85 < first.interval[1]
    assert (first.behind, first.behind_interval) == (0.0, (0.0, 0.0))
    assert second.behind == pytest.approx(0.3) and 0.1 < second.behind_interval[0] < 0.3
    assert [row.front for row in standings.rows] == [True, True, False], "sva is as good as mlp for twice as much"
    assert third.cell.name == "sva"
    one, other = standings.differences[0, 1], standings.differences[1, 0]
    assert one.more == -other.more and one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert one.clear and not standings.differences[1, 2].clear
    assert not standings.differences[0, 2].clear, "one seed is not enough to say so"
    assert [row.leading for row in standings.rows] == [True, False, False]


def blinded(run: Ran, scores: np.ndarray) -> Ran:
    answers = [replace(answer, blind_score=float(score)) for answer, score in zip(run.answers, scores, strict=True)]
    return replace(run, answers=answers, result={**run.result, "accuracy_blind": float(scores.mean())})


def test_what_is_no_better_than_blind_is_not_shown_to_look() -> None:
    """Also if it is the first, and by far."""
    guesses = blinded(ran(right(300)), np.roll(right(300), 1))
    looks = blinded(ran(right(200)), right(100))
    worse = blinded(ran(right(100)), right(200))
    text = replace(worse, result={**worse.result, "visual_tokens_per_image": 0.0})
    rows = stand([(cell(), 1.0, [run]) for run in (guesses, looks, worse, text)]).rows
    assert [row.looks for row in rows] == [False, True, False, True], "the last has no pictures"
    added = rows[1].added
    assert added is not None and added.more == pytest.approx(0.25) and 0.1 < added.interval[0] < 0.25


def test_cells_judged_on_other_items_are_not_paired() -> None:
    other = replace(ran(right(100)), answers=answered(right(100), data="other"))
    standings = stand([(cell("mlp"), 1.0, [ran(right(200))]), (cell("sva"), 1.0, [other])])
    assert standings.rows[1].interval is not None and standings.rows[1].behind is None and not standings.differences


def test_seeds_judged_on_other_items_are_refused() -> None:
    with pytest.raises(DataError, match="the data has changed"):
        stand([(cell(), 1.0, [ran(right(3)), replace(ran(right(3)), answers=answered([True], data="other"))])])


def test_of_many_cells_all_are_compared_to_the_first_alone() -> None:
    standings = stand([(cell(), 1.0, [ran(right(n))]) for n in range(MOST_COMPARED + 1)])
    assert {one for one, _ in standings.differences} == {0} and len(standings.differences) == MOST_COMPARED


def test_a_cell_without_evaluation_data_comes_last() -> None:
    standings = stand([(cell("mlp"), 1.0, [ran([])]), (cell("sva"), 1.0, [ran(right(1))])])
    assert [row.cell.name for row in standings.rows] == ["sva", "mlp"]
    assert standings.rows[1].quality is None and standings.rows[1].interval is None and not standings.rows[1].front
    assert stand([]).rows == []


def test_costs_are_medians_and_tags_means() -> None:
    runs = [ran(right(ITEMS), samples_per_s=speed, seed=n) for n, speed in enumerate((10.0, 90.0, 100.0))]
    runs[0] = replace(runs[0], answers=answered(np.arange(ITEMS) % 2 == 0))
    continued = ran(right(ITEMS), samples_per_s=0.0, seed=3, measured_steps=0)
    [row] = stand([(cell(), 1.0, [*runs, continued])]).rows
    assert row.cost("samples_per_s") == 90, "of runs that were measured as a whole"
    assert stand([(cell(), 1.0, [continued])]).rows[0].cost("samples_per_s") == 0
    unnoted = replace(continued, result={k: v for k, v in continued.result.items() if k != "measured_steps"})
    assert stand([(cell(), 1.0, [*runs, unnoted])]).rows[0].cost("samples_per_s") == 90, "as if it were continued"
    [row] = stand([(cell(), 1.0, runs)]).rows
    assert row.cost("samples_per_s") == 90 and row.cost("energy_per_sample_j") is None
    assert {kind.tag: [each and each.quality for each in kind.reached] for kind in by_kind([row])} == {
        "type=even": [1.0],
        "type=odd": [pytest.approx(2 / 3)],
    }


def test_a_result_that_says_too_little_is_told_with_its_file(tmp_path: Path) -> None:
    result = {name: value for name, value in ran(right(3)).result.items() if name != "parameters"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match=r"result\.json lacks parameters.*delete .*trains that run again"):
        read_run(tmp_path, 0)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result\.json is damaged"):
        read_run(tmp_path, 0)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(0.9, 3), (0.8, 2), (0.7, 1)], {0, 1, 2}),
        ([(0.9, 1), (0.8, 2), (0.9, 2)], {0}),
        ([(0.9, 1), (0.9, 1)], {0, 1}),
        ([(None, 1), (0.5, None), (0.4, 5)], {2}),
        ([], set()),
    ],
)
def test_the_front(points: list[tuple[float | None, float | None]], front: set[int]) -> None:
    assert pareto(points) == front


def test_captions_are_compared_by_cider() -> None:
    random = np.random.default_rng(0)
    low, high = random.gamma(2.0, 0.3, ITEMS), random.gamma(2.0, 0.7, ITEMS)
    standings = stand([(cell("mlp"), 1.0, [captioned(list(low))]), (cell("sva"), 1.0, [captioned(list(high))])])
    first, second = standings.rows
    assert standings.figure is CIDER and first.cell.name == "sva" and first.quality == pytest.approx(high.mean())
    assert first.quality > 1 and first.interval[0] < first.quality < first.interval[1]
    assert (
        second.behind == pytest.approx(high.mean() - low.mean()) and first.blind == 0.05 and first.mean("bleu4") == 0.25
    )


def test_beside_answers_that_are_right_or_wrong_captions_do_not_count() -> None:
    """They are no accuracies: a CIDEr-D of 5 must not lift a mean."""
    plain, captions = ran(right(200)), captioned([5.0] * 40)
    both = replace(plain, answers=[*plain.answers, *captions.answers], result={**captions.result, **plain.result})
    alone, mixed = (stand([(cell(), 1.0, [run])]) for run in (plain, both))
    assert mixed.figure is ACCURACY and mixed.rows[0].quality == alone.rows[0].quality
    assert mixed.rows[0].interval == alone.rows[0].interval and by_kind(mixed.rows) == by_kind(alone.rows)
    assert mixed.rows[0].mean("cider") == 5.0
