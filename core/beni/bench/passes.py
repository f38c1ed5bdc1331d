"""How long the passes of a training step take, told by hooks: the loop and the model know nothing of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from beni.model.modeling import BeniForConditionalGeneration
from beni.training.stopwatch import Stopwatch

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
"""Of the whole model; there is one pass of each direction for every row."""
ENCODE, CONNECT, LLM = "encode", "connect", "llm forward"
"""Within `FORWARD`; blocks of a fusion run inside the language model."""


@contextmanager
def timed(
    model: BeniForConditionalGeneration, optimizer: torch.optim.Optimizer, watch: Stopwatch
) -> Iterator[Callable[[], None]]:
    """Time the passes of a model and the steps of its optimizer, until the block is left.

    Yields:
        To be called behind the last backward pass of a step, which no hook tells.
    """
    handles: list[Any] = []

    def time_module(module: nn.Module, name: str) -> None:
        # in front of FSDP's own hooks, and behind them: gathering its parameters is a part's own time
        handles.append(module.register_forward_pre_hook(lambda *_: watch.start(name), prepend=True))
        handles.append(module.register_forward_hook(lambda *_: watch.stop(name)))

    def ends(*_: Any) -> None:
        watch.stop(BACKWARD)

    def begins(*_: Any) -> None:
        watch.start(BACKWARD)

    time_module(model, FORWARD)
    handles.append(model.register_forward_pre_hook(ends, prepend=True))
    handles.append(model.register_forward_hook(begins))
    for encoder in model.encoders.values():
        time_module(encoder, ENCODE)
    for connector in model.connectors():
        time_module(connector, CONNECT)
    time_module(model.llm, LLM)
    handles.append(optimizer.register_step_pre_hook(lambda *_: watch.start(OPTIMIZER)))
    handles.append(optimizer.register_step_post_hook(lambda *_: watch.stop(OPTIMIZER)))
    try:
        yield ends
    finally:
        for handle in handles:
            handle.remove()
