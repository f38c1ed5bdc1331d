"""The training loop: rows in, gradients summed over everything, one optimizer step, the same for every model."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from beni.config import OptimConfig
from beni.data.batch import PackedBatch
from beni.errors import BeniError
from beni.model.modeling import BeniForConditionalGeneration
from beni.processes import Processes
from beni.training.checkpoint import Position


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did. Tensors stay on the device until somebody looks."""

    position: Position
    """Behind the step."""
    loss: torch.Tensor
    """Summed over this process's targets, divided by the global number of targets."""
    grad_norm: torch.Tensor
    lr_factor: float
    """Share of the peak learning rate."""
    batches: list[PackedBatch]


def train_loop(
    model: BeniForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    steps: Iterator[tuple[int, int, list[PackedBatch]]],
    position: Position,
    total: int,
    optim: OptimConfig,
    processes: Processes,
    after_step: Callable[[StepReport], None],
    after_backward: Callable[[], None] = lambda: None,
) -> Position:
    """Train from a position to the end.

    Args:
        model: parallelized, with `requires_grad` set.
        steps: this process's rows of each step, with the plan's position behind it (`beni.data.loader.batches`).
        position: where training stands.
        total: optimizer steps of the whole run.
        after_step: log, evaluate, checkpoint.
        after_backward: checks of the first step's gradients.

    Returns:
        The position at the end.

    Raises:
        BeniError: the loss is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = position.steps
    model.train()
    for epoch, step_in_epoch, batches in steps:
        factor = lr_factor(position.steps, total, optim.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        [targets] = processes.sum(sum(batch.stats.targets for batch in batches))
        loss = torch.zeros((), device=processes.device)
        for batch in batches:
            share = model(packed=batch.to(processes.device)).loss / max(targets, 1)
            share.backward()
            loss += share.detach()
        if position.steps == first:
            after_backward()
        grad_norm = clip(parameters, optim.clip)
        if not grad_norm.isfinite():
            raise BeniError(f"step {position.steps + 1}: the gradient is not finite; lower --lr or raise --warmup")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        position = Position(position.steps + 1, epoch, step_in_epoch)
        after_step(StepReport(position, loss, grad_norm, factor, batches))
    return position


def lr_factor(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then half a cosine down to zero."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def clip(parameters: list[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale the gradient so that its norm over all parameters and processes is at most `largest`; returns the norm."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm
