"""How far a mean score may be off because no more items were judged and no more seeds trained.

The bootstrap draws items and seeds again, with replacement. Items about the same images are drawn together: their
answers depend on each other (a cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their Application, §3.8).
All combinations see the same items in a draw, so their differences are paired; seeds are drawn for each by itself.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

DRAWS = 4000
AT_ONCE = 250
"""Draws that are in memory together."""
LEVEL = 0.95

# C: combinations · S: seeds of one of them · N: items · G: groups of items about the same images · R: draws


def draws(
    scores: Sequence[Float[np.ndarray, "_ N"]],
    groups_N: Int[np.ndarray, " N"],
    count: int = DRAWS,
    seed: int = 0,
) -> Float[np.ndarray, "C R"]:
    """Mean scores over seeds and items, of items and seeds drawn again.

    Args:
        scores: what answers get, by combination, seed and item; the same items everywhere.
        groups_N: of items about the same images, numbers from 0 on without gaps.
        count: of draws.
        seed: of the draws.

    Raises:
        ValueError: there are no items.
    """
    if not len(groups_N):
        raise ValueError("there are no items to draw")
    random = np.random.default_rng(seed)
    groups = int(groups_N.max()) + 1
    sizes_G = np.bincount(groups_N, minlength=groups)
    hits = [_by_group(scores_SN, groups_N, groups) for scores_SN in scores]
    found = np.empty((len(scores), count))
    for start in range(0, count, AT_ONCE):
        stop = min(start + AT_ONCE, count)
        times_RG = random.multinomial(groups, np.full(groups, 1 / groups), size=stop - start).astype(float)
        items_R = times_RG @ sizes_G
        for number, hits_SG in enumerate(hits):
            seeds = len(hits_SG)
            share_RS = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=stop - start) / seeds
            found[number, start:stop] = ((times_RG @ hits_SG.T) * share_RS).sum(1) / items_R
    return found


def interval(draws_R: Float[np.ndarray, " R"]) -> tuple[float, float]:
    """The percentile interval that holds 95 % of the draws."""
    low, high = np.quantile(draws_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _by_group(
    scores_SN: Float[np.ndarray, "S N"], groups_N: Int[np.ndarray, " N"], groups: int
) -> Float[np.ndarray, "S G"]:
    """Scores in each group, summed."""
    return np.stack([np.bincount(groups_N, weights=row_N, minlength=groups) for row_N in scores_SN])
