"""In which order the documents of an epoch are packed, and the rows become steps.

An order is a function of what the trees cost and of a generator. Trees arrive shuffled; whatever an order does with
them, every one is in exactly one row, and the last step alone may hold fewer rows than the others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

LOOKAHEAD = 32
"""Rows kept open while packing; a tree goes into the fullest one with room."""
MEGABATCH = 50
"""Most steps' worth of trees that are sorted by length together."""
MEGABATCHES = 4
"""Fewest sorted stretches of an epoch: where it is short, they are short, and chance still decides what meets."""
TOKENS, IMAGES = 0, 1
"""Columns of costs; crops and visual tokens follow."""

Packed = list[list[int]]
"""Rows of numbers of trees."""
Order = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], Packed]
"""(costs [trees, 4], budget of a row [4], rows per step, generator) → rows, in the order in which they are taken."""


def shuffled(costs: np.ndarray, budget: np.ndarray, rows: int, rng: np.random.Generator) -> Packed:
    """As the trees come: whatever a row has room for."""
    return fill(range(len(costs)), costs, budget)


def by_length(costs: np.ndarray, budget: np.ndarray, rows: int, rng: np.random.Generator) -> Packed:
    """Trees of similar length in one row and in one step; steps in random order.

    As transformers' length grouping: chance makes megabatches, each is sorted, so no two epochs are alike. Its batches
    then come from long to short; here whole steps are shuffled, as by llama-recipes' `LengthBasedBatchSampler`.
    """
    return _shuffle_steps([_sorted_rows(np.arange(len(costs)), costs, budget, rows)], rows, rng)


def by_modality(costs: np.ndarray, budget: np.ndarray, rows: int, rng: np.random.Generator) -> Packed:
    """Steps with images only, or without any, each grouped by length (LLaVA's `group_by_modality_length`).

    No row is mixed. What of each kind fills no step comes last, rows with images first, so that at most one step of
    an epoch has both.
    """
    seen = costs[:, IMAGES] > 0
    kinds = [_sorted_rows(np.flatnonzero(kind), costs, budget, rows) for kind in (seen, ~seen)]
    return _shuffle_steps(kinds, rows, rng)


ORDERS: Mapping[str, Order] = {"shuffled": shuffled, "length": by_length, "modality": by_modality}
"""By what `--order` calls them."""


def fill(trees: Iterable[int], costs: np.ndarray, budget: np.ndarray) -> Packed:
    """Best fit over a few open rows, in order, under all budgets; a tree beyond a budget gets a row alone."""
    rows: Packed = []
    used = np.zeros((LOOKAHEAD, len(budget)), dtype=np.int64)  # of the newest rows: row r is at r % LOOKAHEAD
    for tree in trees:
        cost = costs[tree]
        newest = min(len(rows), LOOKAHEAD)
        fits = (used[:newest] + cost <= budget).all(1)
        if fits.any():
            slot = int(np.where(fits, used[:newest, TOKENS], -1).argmax())
            rows[len(rows) - 1 - (len(rows) - 1 - slot) % LOOKAHEAD].append(tree)
            used[slot] += cost
        else:
            used[len(rows) % LOOKAHEAD] = cost
            rows.append([tree])
    return rows


def _sorted_rows(trees: np.ndarray, costs: np.ndarray, budget: np.ndarray, rows: int) -> Packed:
    """Cut shuffled trees into megabatches, sort each from long to short, and pack them one after another."""
    steps = max(1, int(np.ceil((costs[trees].sum(0) / budget).max() / rows)))  # if nothing were lost in packing
    stretches = max(MEGABATCHES, -(-steps // MEGABATCH))
    ordered = [part[np.argsort(-costs[part, TOKENS], kind="stable")] for part in np.array_split(trees, stretches)]
    return fill(np.concatenate(ordered).tolist(), costs, budget)


def _shuffle_steps(kinds: Sequence[Packed], rows: int, rng: np.random.Generator) -> Packed:
    """The whole steps of every kind in random order, then the rows that fill none."""
    whole = [len(kind) // rows * rows for kind in kinds]
    steps = [kind[at : at + rows] for kind, end in zip(kinds, whole, strict=True) for at in range(0, end, rows)]
    rest = [row for kind, end in zip(kinds, whole, strict=True) for row in kind[end:]]
    return [row for number in rng.permutation(len(steps)) for row in steps[number]] + rest
