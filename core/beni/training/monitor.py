"""What a run asks of its machine: the clock, and with each line of the metrics memory, processors, and the GPU."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import torch

from beni.training.gpu import Gpu
from beni.training.stopwatch import Stopwatch
from beni.training.totals import Totals

WAITS_TOO_LONG = 0.1
"""Share of the time that training may wait for data before somebody is told."""
PATIENCE_S = 10.0
"""Seconds of training before that is judged: the first rows always take long."""

_TOGETHER: Mapping[str, Any] = {"gpu_power_w": sum, "gpu_clock_mhz": min}
"""How figures of several processes become one, where that is not the largest."""


class Monitor:
    """Watches one process and its device. Its clock runs from here on."""

    def __init__(self, device: torch.device) -> None:
        self.watch = Stopwatch(device)
        """Of what training waits for."""
        self._gpu = Gpu.of(device)
        self._process = psutil.Process()
        psutil.cpu_percent()  # the next one is about the time since this one
        self._told: set[str] = set()
        self._since, self._joules = time.perf_counter(), self._energy()

    def close_window(self, window: Totals) -> None:
        """Write into a window of steps what it took; the next one begins."""
        window.times = self.watch.read()
        now, joules = time.perf_counter(), self._energy()
        window.seconds, window.energy_j = now - self._since, joules - self._joules
        self._since, self._joules = now, joules

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside belongs to no window."""
        began, joules = time.perf_counter(), self._energy()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began
            self._joules += self._energy() - joules

    def sample(self) -> dict[str, Any]:
        """What processors, memory and the GPU do now."""
        figures: dict[str, Any] = {"cpu_percent": psutil.cpu_percent(), "rss_bytes": self._resident()}
        return figures | (self._gpu.sample() if self._gpu else {})

    def warnings(self, totals: Totals, figures: Mapping[str, Any]) -> list[str]:
        """What somebody should look at, each once.

        Args:
            totals: of all processes and steps so far.
            figures: of all processes (`together`).
        """
        found = {}
        if totals.seconds > PATIENCE_S and totals.waiting > WAITS_TOO_LONG:
            found["waiting"] = (
                f"training waits for data in {totals.waiting:.0%} of the time: more --workers may help, or smaller "
                f"images, or a faster disk"
            )
        for reason in figures.get("gpu_throttled", ()):
            found[reason] = f"a GPU runs slower than it could: {reason}"
        fresh = [text for key, text in found.items() if key not in self._told]
        self._told |= found.keys()
        return fresh

    def _energy(self) -> float:
        return self._gpu.energy_j() if self._gpu else 0.0

    def _resident(self) -> int:
        """Memory of this process and its data workers; what they share counts for each."""
        held = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                held += child.memory_info().rss
        return held


def together(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of several processes as one: power is added up, of clocks the slowest counts, of all else the most."""
    names = dict.fromkeys(name for each in samples for name in each)
    figures = {name: [each[name] for each in samples if name in each] for name in names}
    throttled = {reason for reasons in figures.pop("gpu_throttled", []) for reason in reasons}
    merged = {name: _TOGETHER.get(name, max)(values) for name, values in figures.items()}
    return merged | ({"gpu_throttled": sorted(throttled)} if throttled else {})
