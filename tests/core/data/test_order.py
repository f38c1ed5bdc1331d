"""Orders: every tree once under every budget; what meets in a step; nothing lost but the end of an epoch."""

import numpy as np
import pytest

from beni.data.order import IMAGES, ORDERS, TOKENS, Packed, fill

BUDGET = np.array([200, 3, 5, 100])


def made(seed: int, trees: int = 600, text: float = 0.5) -> np.ndarray:
    """Costs of trees from 5 to 120 tokens, some of them without an image."""
    rng = np.random.default_rng(seed)
    images = np.where(rng.random(trees) < text, 0, rng.integers(1, 3, trees))
    return np.stack([rng.integers(5, 121, trees), images, images, images * 9], axis=1)


def order(name: str, costs: np.ndarray, rows: int, seed: int = 0) -> Packed:
    return ORDERS[name](costs, BUDGET, rows, np.random.default_rng(seed))


def steps(packed: Packed, rows: int) -> list[Packed]:
    return [packed[at : at + rows] for at in range(0, len(packed), rows)]


def modalities(costs: np.ndarray, step: Packed) -> set[bool]:
    return {bool(costs[tree, IMAGES]) for row in step for tree in row}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_every_tree_is_in_one_row_and_no_row_beyond_a_budget(name: str, rows: int) -> None:
    for trees, text in ((600, 0.5), (600, 0), (600, 1), (7, 0.5), (1, 0), (0, 0)):
        costs = made(0, trees, text)
        packed = order(name, costs, rows)
        assert sorted(tree for row in packed for tree in row) == list(range(trees))
        assert all((costs[row].sum(0) <= BUDGET).all() for row in packed)


@pytest.mark.parametrize("name", ORDERS)
def test_little_room_is_lost(name: str) -> None:
    costs = made(1)
    least = sum((costs[kind].sum(0) / BUDGET).max() for kind in (costs[:, IMAGES] > 0, costs[:, IMAGES] == 0))
    assert len(order(name, costs, 4)) < 1.1 * least


@pytest.mark.parametrize("name", ORDERS)
def test_the_generator_decides(name: str) -> None:
    costs = made(2)
    assert order(name, costs, 2) == order(name, costs, 2)
    if name != "shuffled":  # there the trees come shuffled, and stay so
        assert order(name, costs, 2) != order(name, costs, 2, seed=1)


def within_steps(costs: np.ndarray, packed: Packed, rows: int) -> tuple[float, float]:
    """Means over steps: the deviation of lengths, and by how much the squares of lengths differ between rows."""
    lengths = [[[int(costs[tree, TOKENS]) for tree in row] for row in step] for step in steps(packed, rows)]
    spread = np.mean([np.std([length for row in step for length in row]) for step in lengths])
    attention = np.mean([np.ptp([sum(length**2 for length in row) for row in step]) for step in lengths])
    return float(spread), float(attention)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_length_brings_similar_lengths_together(rows: int) -> None:
    costs = made(3, 3000)
    spread, attention = within_steps(costs, order("shuffled", costs, rows), rows)
    for name in ("length", "modality"):
        less, alike = within_steps(costs, order(name, costs, rows), rows)
        assert less < 0.7 * spread
        assert alike < 0.3 * attention or rows == 1


def test_lengths_do_not_run_from_long_to_short_over_an_epoch() -> None:
    costs = made(4, 3000)
    means = [np.mean([costs[t, TOKENS] for row in s for t in row]) for s in steps(order("length", costs, 2), 2)]
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.2


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_steps_have_one_modality_but_for_the_remainders(rows: int, seed: int) -> None:
    costs = made(seed, 400 + seed)
    packed = order("modality", costs, rows, seed)
    assert all(len(modalities(costs, [row])) == 1 for row in packed)
    kinds = [sum(modalities(costs, [row]) == {seen} for row in packed) for seen in (True, False)]
    whole = sum(count // rows for count in kinds)
    cut = steps(packed, rows)
    assert all(len(modalities(costs, step)) == 1 for step in cut[:whole])
    mixed = [number for number, step in enumerate(cut) if len(modalities(costs, step)) == 2]
    assert len(mixed) <= 1 and all(number >= whole for number in mixed)
    assert len(cut) == -(-sum(kinds) // rows)  # and no step more than the rows need
    assert {frozenset(modalities(costs, step)) for step in cut[: whole // 2]} == {frozenset({True}), frozenset({False})}


def test_what_is_beyond_a_budget_gets_a_row_alone() -> None:
    costs = np.array([[10, 0, 0, 0], [999, 0, 0, 0], [10, 0, 0, 0]])
    assert fill(range(3), costs, BUDGET) == [[0, 2], [1]]
