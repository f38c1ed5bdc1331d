"""What was trained on in some steps: counts, times, operations, and the figures that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beni.data.batch import PackedBatch
from beni.errors import Uncountable, counted
from beni.flops.account import FlopMeter, RowFacts
from beni.flops.count import PartFlops, added
from beni.flops.figures import per_sample, utilization
from beni.flops.figures import total as summed
from beni.processes import Processes
from beni.training.stopwatch import WAIT

LISTED = 1000
"""Most samples that a result names of those that were left out; it counts all of them."""
_ADDED = ("samples", "tokens", "positions", "images", "visual_tokens", "seconds", "energy_j", "uncounted")


def why_none(bad: Mapping[str, str]) -> str:
    """What to say where no sample could be trained on.

    Args:
        bad: sample id → what was wrong.
    """
    name, why = next(iter(bad.items()), ("", ""))
    told = f"{counted(len(bad), 'sample')} left out; '{name}': {why}" if bad else "the rows are empty"
    return f"no sample could be trained on: {told}"


@dataclass(slots=True)
class Totals:
    """Counts of some steps, of one process or of all together."""

    samples: float = 0
    tokens: float = 0
    """Positions of the language model, without padding and blank images."""
    positions: float = 0
    """Computed positions: tokens and dummies."""
    images: float = 0
    visual_tokens: float = 0
    seconds: float = 0
    times: dict[str, float] = field(default_factory=dict)
    """Seconds by what a stopwatch calls them."""
    energy_j: float = 0
    """That GPUs have used; 0 without one that tells."""
    rows: list[RowFacts] = field(default_factory=list)
    """Whose operations are still to be counted."""
    flops: PartFlops = field(default_factory=dict)
    causal: PartFlops = field(default_factory=dict)
    """With causal attention."""
    uncounted: int = 0
    """Rows whose operations cannot be counted."""
    bad: dict[str, str] = field(default_factory=dict)
    """Sample id → what was wrong, for samples left out."""

    def add(self, batches: Sequence[PackedBatch], meter: FlopMeter | None) -> None:
        """Count one process's share of a step, but for its operations: those take `count`."""
        for batch in batches:
            self.samples += batch.stats.samples
            self.tokens += batch.stats.tokens
            self.positions += len(batch.ids_T)
            self.images += batch.stats.images
            self.visual_tokens += batch.stats.visual_tokens
            self.bad.update(batch.stats.bad)
        if meter is None:
            self.uncounted += len(batches)
        else:
            self.rows += map(meter.facts, batches)

    def count(self, meter: FlopMeter) -> None:
        """Count the operations of the rows.

        Raises:
            Uncountable: they cannot be; the rows are noted as uncounted.
        """
        rows, self.rows = self.rows, []
        try:
            costs = [meter.cost(facts) for facts in rows]
        except Uncountable:
            self.uncounted += len(rows)
            raise
        self.flops = added(self.flops, *(cost.full for cost in costs))
        self.causal = added(self.causal, *(cost.causal for cost in costs))

    def merge(self, other: "Totals") -> None:
        """Add what has been counted elsewhere, or in other steps."""
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.times = {
            name: self.times.get(name, 0) + other.times.get(name, 0) for name in self.times.keys() | other.times.keys()
        }
        self.flops, self.causal = added(self.flops, other.flops), added(self.causal, other.causal)
        self.bad |= other.bad

    def over(self, processes: Processes) -> "Totals":
        """All processes together; times are those of the process that a step waits for longest."""
        together, shares = Totals(), processes.gather(self)
        for share in shares:
            together.merge(share)
        together.seconds = self.seconds
        together.times = {name: max(share.times.get(name, 0) for share in shares) for name in self.times}
        return together

    def speed(self, limit: float | None) -> dict[str, float | None]:
        """Figures per second.

        Args:
            limit: operations per second that all devices can compute, where somebody knows.
        """
        seconds = max(self.seconds, 1e-9)
        names = "samples", "images", "tokens"
        speeds: dict[str, float | None] = {f"{name}_per_s": getattr(self, name) / seconds for name in names}
        if self.uncounted or not self.flops:
            return speeds
        return speeds | utilization(summed(self.flops).model / seconds, self.flops, self.causal, limit)

    @property
    def waiting(self) -> float:
        """Share of the time that the slowest process waited for data."""
        return self.times.get(WAIT, 0) / max(self.seconds, 1e-9)

    def summary(self, limit: float | None) -> dict[str, Any]:
        """Figures for result.json; those that nobody knows are None."""
        unknown = dict.fromkeys(("flops_per_sample", "flops_per_sample_causal", "flops_per_sample_by_part"))
        counted = self.samples and not self.uncounted
        return {
            **dict.fromkeys(("flops_per_s", "mfu", "mfu_causal", "hfu")),
            **self.speed(limit),
            **(per_sample(self.flops, self.causal, self.samples) if counted else unknown),
            "energy_per_sample_j": self.energy_j / self.samples if self.energy_j and self.samples else None,
            "data_wait": self.waiting,
            "padding_fraction": 1 - self.tokens / max(self.positions, 1),
            "visual_tokens_per_image": self.visual_tokens / self.images if self.images else None,
            "train_s": self.seconds,
            "skipped_samples": len(self.bad),
            "skipped": [{"id": name, "reason": why} for name, why in sorted(self.bad.items())[:LISTED]],
        }
