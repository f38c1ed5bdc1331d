"""How far a mean score may be off because no more items were judged."""

import math

import numpy as np
from jaxtyping import Float, Int

Z = 1.959964
"""Normal quantile of a two-sided 95 % interval."""


def wilson(share: float, items: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share.

    Args:
        share: 0 to 1.
        items: independent trials, or as many as they are worth; with none, the interval is everything, (0, 1).
    """
    if not items:
        return 0.0, 1.0
    z2 = Z**2
    centre = (share + z2 / (2 * items)) / (1 + z2 / items)
    half = Z / (1 + z2 / items) * math.sqrt(share * (1 - share) / items + z2 / (4 * items**2))
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def clustered(scores_N: Float[np.ndarray, " N"], groups_N: Int[np.ndarray, " N"]) -> tuple[float, float]:
    """The 95 % interval of a mean score, of items that depend on each other inside their groups.

    Wilson's, for as many independent items as have the variance that the means of the groups show, and no more than
    there are; few groups show it badly, for which the number is lowered further. Reference: Dean and Pagano 2015
    (J. Surv. Stat. Methodol. 3, 484-503), the Wilson interval with an effective sample size, corrected for its degrees
    of freedom.

    Args:
        scores_N: 0 to 1.
        groups_N: of items about the same images, numbers from 0 on without gaps.
    """
    if not len(scores_N):
        return wilson(0.0, 0)
    items, mean, groups = len(scores_N), float(scores_N.mean()), int(groups_N.max()) + 1
    if groups == 1 or scores_N.min() == scores_N.max():
        return wilson(mean, groups)  # nothing shows how groups vary
    effective = min(mean * (1 - mean) / max(_variance(scores_N, groups_N), np.finfo(float).tiny), items)
    return wilson(mean, effective * (Z / _student(groups - 1)) ** 2)


def student(scores_N: Float[np.ndarray, " N"], groups_N: Int[np.ndarray, " N"]) -> tuple[float, float] | None:
    """The 95 % interval of a mean score that is no share: Student's t, with the variance that the groups show.

    Args:
        scores_N: at least 0.
        groups_N: as for `clustered`.

    Returns:
        None where nothing shows how groups vary.
    """
    if not len(scores_N) or groups_N.max() == 0 or scores_N.min() == scores_N.max():
        return None
    mean = float(scores_N.mean())
    half = _student(int(groups_N.max())) * math.sqrt(_variance(scores_N, groups_N))
    return max(0.0, mean - half), mean + half


def _variance(scores_N: Float[np.ndarray, " N"], groups_N: Int[np.ndarray, " N"]) -> float:
    """Of the mean, as the sums of two groups or more show it."""
    items, groups = len(scores_N), int(groups_N.max()) + 1
    off_G = np.bincount(groups_N, weights=scores_N - scores_N.mean(), minlength=groups)
    return float((off_G**2).sum()) / items**2 * groups / (groups - 1)


def _student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t, within 1 % (Abramowitz and Stegun 26.7.5; exact below three)."""
    if freedom < 3:
        return (12.706205, 4.302653)[freedom - 1]
    terms = ((Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384)
    return Z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def numbered(names: "list[str]") -> Int[np.ndarray, " N"]:
    """The same number for the same name, from 0 on without gaps."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
