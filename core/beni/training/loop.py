"""The training loop: rows in, gradients summed over everything, one optimizer step, the same for every model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from beni.config import OptimConfig
from beni.data.batch import PackedBatch
from beni.data.plan import Place
from beni.errors import BeniError
from beni.model.modeling import BeniForConditionalGeneration
from beni.processes import Processes
from beni.training.checkpoint import Position
from beni.training.parallel import exchange_gradients
from beni.training.schedule import lr_factor


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did. Tensors stay on the device until somebody looks."""

    position: Position
    """Behind the step."""
    loss: torch.Tensor
    """Summed over this process's targets, divided by the global number of targets, or by their weight."""
    grad_norm: torch.Tensor
    lr_factor: float
    """Share of the peak learning rate."""
    skipped: str
    """What was not finite, so that no parameter was changed; empty for a step that was taken."""
    batches: list[PackedBatch]


def train_loop(
    model: BeniForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    steps: Iterator[tuple[Place, list[PackedBatch]]],
    position: Position,
    total: int,
    optim: OptimConfig,
    processes: Processes,
    after_step: Callable[[StepReport], None],
    after_backward: Callable[[], None] = lambda: None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Position:
    """Train from a position to the end, or until some process is asked to stop.

    Args:
        model: parallelized, with `requires_grad` set.
        steps: this process's rows of each step, with the place behind it (`beni.data.loader.batches`).
        position: where training stands.
        total: optimizer steps of the whole run.
        after_step: log, evaluate, checkpoint.
        after_backward: checks of the gradients.
        asked_to_stop: whether this process should end; all end before the same step.

    Returns:
        The position at the end.

    Raises:
        BeniError: the loss or the gradient is not finite, in more steps than may be left out.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()
    processes.doing(f"loading the rows of step {position.steps + 1}")
    for place, batches in steps:
        processes.doing(f"in step {position.steps + 1}")
        factor = lr_factor(position.steps, total, optim)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        weight, stops = processes.sum(sum(batch.stats.weight for batch in batches), asked_to_stop())
        if stops:
            break
        loss = torch.zeros((), device=processes.device)
        for number, batch in enumerate(batches, start=1):
            exchange_gradients(model, number == len(batches))
            share = model(packed=batch.to(processes.device)).loss / (weight or 1)
            share.backward()
            loss += share.detach()
        after_backward()
        grad_norm = clip(parameters, optim.clip)
        position = Position(position.steps + 1, place.epoch, place.step, position.skipped, place.streams)
        skipped = ""
        if processes.all(bool(loss.isfinite() & grad_norm.isfinite())):
            optimizer.step()
        else:
            skipped = not_finite(model, loss, processes)
            position = replace(position, skipped=position.skipped + 1)
            if position.skipped > optim.skip_steps:
                raise BeniError(
                    f"step {position.steps}: {skipped} is not finite, and {position.skipped - 1} steps were left out "
                    f"for this before; leave it out with --skip-steps and --resume auto, or begin again with a lower "
                    f"--lr or a longer --warmup"
                )
        optimizer.zero_grad(set_to_none=True)
        after_step(StepReport(position, loss, grad_norm, factor, skipped, batches))
        processes.doing(f"loading the rows of step {position.steps + 1}")
    return position


def clip(parameters: list[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale the gradient so that its norm over all parameters and processes is at most `largest`; returns the norm.

    A gradient that is not finite is left as it is.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if norm.isfinite():
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def not_finite(model: nn.Module, loss: torch.Tensor, processes: Processes) -> str:
    """Names what is not finite on any process: the first parameter's gradient, else the loss, else the norm of all."""
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    local = [g.to_local() if isinstance(g, DTensor) else g for _, g in gradients]
    bad = [number for number, gradient in enumerate(local) if not gradient.isfinite().all()]
    first = min(processes.gather(bad[0] if bad else len(gradients)))
    if first < len(gradients):
        return f"the gradient of '{gradients[first][0]}'"
    return "the norm of the gradient" if processes.all(bool(loss.isfinite())) else "the loss"
