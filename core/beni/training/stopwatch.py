"""How long things take, on a CPU or a GPU, and how long training waits for data."""

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")

WAIT = "data wait"


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


def waited(items: Iterator[Item], watch: Stopwatch) -> Iterator[Item]:
    """The same items, with the time that one waits for each."""
    while True:
        watch.start(WAIT)
        item = next(items, None)
        watch.stop(WAIT)
        if item is None:
            return
        yield item
