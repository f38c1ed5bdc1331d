"""What comes between a model that was built and its first step: freezing, sharding, the optimizer, counting."""

from dataclasses import dataclass

import torch

from beni.errors import Uncountable
from beni.flops.account import FlopMeter
from beni.training import freeze
from beni.training.meter import meter_of
from beni.training.parallel import gather_once, parallelize
from beni.training.prepare import Run


@dataclass(frozen=True, slots=True)
class Ready:
    """What trains the model of a run, and what counts its operations."""

    optimizer: torch.optim.Optimizer
    meter: FlopMeter | None
    uncountable: str
    """Why there is no meter."""

    def counted(self) -> FlopMeter:
        """The meter, for those who cannot do without.

        Raises:
            Uncountable: there is none.
        """
        if self.meter is None:
            raise Uncountable(self.uncountable)
        return self.meter


def ready(run: Run) -> Ready:
    """Freeze what is not trained, shard the model, make the optimizer."""
    model, table, config = run.built.model, run.table, run.config
    freeze.apply(model, table)
    meter, uncountable = None, ""
    try:
        meter = meter_of(model, config.run)
    except Uncountable as error:  # which keeps nobody from training
        uncountable = str(error)
    parallelize(model, run.processes, config.run, freeze.frozen_encoders(table), run.dtype)
    freeze.apply(model, table)
    if run.cached is not None:
        gather_once(model.encoders)
    groups = freeze.parameter_groups(model, table, config.optim)
    return Ready(torch.optim.AdamW(groups, betas=config.optim.betas, fused=True), meter, uncountable)
