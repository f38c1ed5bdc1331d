"""How many steps a training has: by themselves, or by what is to be seen or computed."""

from collections.abc import Sequence

import numpy as np

from beni.config import RunConfig
from beni.data.features import FeatureStore
from beni.data.loader import Rows
from beni.data.plan import Plan
from beni.errors import ConfigError, Uncountable
from beni.flops.figures import total
from beni.model.modeling import BeniForConditionalGeneration
from beni.training import freeze
from beni.training.meter import meter_of

COUNTED = 128
"""Most rows that are counted to know what an epoch costs; no image of them is read."""


def steps_of(
    config: RunConfig, rows: Rows, streams: bool, model: BeniForConditionalGeneration, table: Sequence[freeze.FreezeRow]
) -> int:
    """Optimizer steps of a whole run, the same in every process.

    Args:
        config: the run's.
        rows: of the data; where there are streams, of their first block, for which all others are taken to be alike.
        streams: whether there are.
        model: before it is sharded. If operations are a budget, it is frozen by the table.
        table: what is trained.

    Raises:
        ConfigError: the operations do not pay for a step.
        Uncountable: they are a budget, and cannot be counted.
    """
    optim, plan = config.optim, rows.plan
    if optim.steps:
        return optim.steps
    epochs = optim.epochs
    if optim.samples:
        epochs = optim.samples / plan.samples
    elif optim.flops:
        freeze.apply(model, table)
        epochs = optim.flops / _epoch_flops(config, rows, model)
        if (affordable := epochs * plan.steps(0)) < 1:
            raise ConfigError(
                f"--flops {optim.flops:g} is less than a step costs: about {optim.flops / affordable:.3g}"
            )
    return max(1, round(epochs * plan.steps(0)) if streams else _steps(plan, epochs))


def _steps(plan: Plan, epochs: float) -> int:
    """Optimizer steps of so many passes over the data."""
    whole, part = int(epochs), epochs - int(epochs)
    return sum(plan.steps(e) for e in range(whole)) + (round(part * plan.steps(whole)) if part else 0)


def _epoch_flops(config: RunConfig, rows: Rows, model: BeniForConditionalGeneration) -> float:
    """What the first epoch costs, forward and backward: its number of rows by the mean of some, drawn by the seed.

    The first rows would not do: in some orders they are all alike, and the last rows of an epoch may be short.

    Raises:
        Uncountable: this cannot be counted.
    """
    plan = rows.plan
    planned = len(plan.rows(0))
    drawn = np.random.default_rng(config.run.seed).choice(planned, min(planned, COUNTED), replace=False)
    unread = Rows(rows.sources, plan, rows.composer)
    unread.features = FeatureStore({})  # of no encoder: rows come without pixels, and encoders are counted
    try:
        meter = meter_of(model, config.run)
        costs = [
            total(meter.row(unread[(0, *divmod(number, plan.batch.rows))]).full).model for number in drawn.tolist()
        ]
    except Uncountable as error:
        raise Uncountable(f"--flops: {error}; give --steps or --samples instead") from error
    return planned * float(np.mean(costs))
