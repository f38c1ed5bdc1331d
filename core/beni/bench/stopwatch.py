"""How long the parts of a training step take, told by hooks: the loop and the model know nothing of it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from beni.model.modeling import BeniForConditionalGeneration

Item = TypeVar("Item")

WAIT, OPTIMIZER = "data wait", "optimizer"
FORWARD, BACKWARD = "forward", "backward"
"""Of the whole model; there is one of each for every row."""
ENCODE, CONNECT, LLM = "encode", "connect", "llm forward"
"""Within `FORWARD`; blocks of a fusion run inside the language model."""


class Stopwatch:
    """Adds up times by name.

    On a GPU, what is timed is the work there: marks are put into its queue, and nobody waits for it before `read`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._running: dict[str, Any] = {}
        self._taken: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def start(self, name: str) -> None:
        """Begin, or begin again."""
        self._running[name] = self._mark()

    def stop(self, name: str) -> None:
        """End what was started; nothing, if it was not."""
        if name in self._running:
            self._taken[name].append((self._running.pop(name), self._mark()))

    def read(self) -> dict[str, float]:
        """Seconds by name since the last reading; waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        taken, self._taken = self._taken, defaultdict(list)
        return {name: sum(self._between(*pair) for pair in pairs) for name, pairs in taken.items()}

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._on_gpu else end - start


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


def waited(items: Iterator[Item], watch: Stopwatch) -> Iterator[Item]:
    """The same items, with the time that one waits for each."""
    while True:
        watch.start(WAIT)
        item = next(items, None)
        watch.stop(WAIT)
        if item is None:
            return
        yield item
