"""A run with everything that comes before its first step."""

from dataclasses import dataclass

import torch

from beni.flops.account import FlopMeter
from beni.model.parts import stacks
from beni.training import freeze
from beni.training.parallel import parallelize
from beni.training.prepare import Run
from beni.training.recompute import DEAR


@dataclass(frozen=True, slots=True)
class Ready:
    """A run that can be trained, and what counts its operations."""

    run: Run
    meter: FlopMeter
    optimizer: torch.optim.Optimizer


def ready(run: Run) -> Ready:
    """Shard a run's model, freeze what is not trained, make the optimizer, as training does."""
    model, table, config = run.built.model, run.table, run.config
    freeze.apply(model, table)
    meter = _meter(run)
    parallelize(model, run.processes, config.run, freeze.frozen_encoders(table))
    freeze.apply(model, table)
    groups = freeze.parameter_groups(model, table, config.optim)
    return Ready(run, meter, torch.optim.AdamW(groups, betas=config.optim.betas, fused=True))


def _meter(run: Run) -> FlopMeter:
    """Of the model as it will be computed; before it is sharded."""
    options = run.config.run
    blocks = [block for stack in stacks(run.built.model) for block in stack[:: options.activation_checkpointing_every]]
    recomputed = [] if options.activation_checkpointing == "none" else blocks
    return FlopMeter(run.built.model, recomputed, DEAR if options.activation_checkpointing == "selective" else [])
