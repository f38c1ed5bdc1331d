"""The learning rate over a run, as a share of its peak."""

import math

from beni.config import OptimConfig


def lr_factor(step: int, total: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at a step: a linear rise, then what `--schedule` says.

    Args:
        step: counted from 0.
        total: steps of the whole run.
        optim: `warmup` is the rise's share of the run, `decay` that of wsd's fall.

    Returns:
        More than 0 and at most 1 at every step.
    """
    rising = max(1, round(total * optim.warmup))
    if step < rising:
        return (step + 1) / rising
    gone = (step - rising) / max(1, total - rising)
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * gone))
    if optim.schedule == "linear":
        return 1 - gone
    if optim.schedule == "wsd":
        return min(1.0, (total - step) / max(1, round(total * optim.decay)))
    return 1.0
