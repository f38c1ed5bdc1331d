"""What bounds the speed of a step: arithmetic, memory traffic, or the program around them.

A step is profiled, and its time divided: matrix products and convolutions, whose operations are what MFU counts; all
other operations, which mostly move memory; communication; waiting for data; and what is left, in which no operation
runs: Python, dispatch, and on a GPU waiting for kernels to be launched. See He 2022, "Making deep learning go brrrr
from first principles".
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch.utils.flop_counter import flop_registry

_LIBRARIES = ("mkldnn_", "cudnn_", "miopen_", "thnn_", "slow_conv", "_slow_conv", "_conv_depthwise", "conv_depthwise")
"""What the kernels of libraries for products and convolutions are called."""
_ATTENTION = ("_scaled_dot_product_", "_flash_attention_", "_efficient_attention_", "_cudnn_attention_")
_COMMUNICATION = ("gloo:", "nccl:", "c10d::", "record_param_comms")


@dataclass(frozen=True, slots=True)
class Regime:
    """Shares of a step's time."""

    products: float
    """Matrix products, convolutions, attention."""
    other: float
    """Other operations: memory traffic."""
    communication: float
    waiting: float
    """For data."""
    overhead: float
    """Between operations."""

    @property
    def bound_by(self) -> str:
        """The largest share, in the usual terms."""
        terms = {
            "products": "compute",
            "other": "memory traffic",
            "communication": "communication",
            "waiting": "data",
            "overhead": "overhead",
        }
        shares = asdict(self)
        return terms[max(shares, key=lambda name: shares[name])]

    def __str__(self) -> str:
        return (
            f"bound by {self.bound_by}: of a step, matrix products, convolutions and attention take "
            f"{self.products:.0%}, other operations {self.other:.0%}, communication {self.communication:.0%}, waiting "
            f"for data {self.waiting:.0%}; in {self.overhead:.0%} no operation runs"
        )


def divide(events: Iterable[Any], wall_s: float, waiting_s: float, on_gpu: bool) -> Regime:
    """Divide the time of some steps.

    Args:
        events: the profiler's averages by operation.
        wall_s: how long the steps took.
        waiting_s: how long they waited for data.
        on_gpu: what counts is the time on the GPU, where operations run while Python goes on.
    """
    seconds = {"products": 0.0, "other": 0.0, "communication": 0.0}
    for event in events:
        taken = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        if kind := kind_of(event.key):
            seconds[kind] += taken
    left = max(0.0, wall_s - waiting_s - sum(seconds.values()))
    whole = max(wall_s, waiting_s + left + sum(seconds.values()))
    shares = {kind: taken / whole for kind, taken in seconds.items()}
    return Regime(**shares, waiting=waiting_s / whole, overhead=left / whole)


def kind_of(name: str) -> str:
    """Of what kind an operation is, by the profiler's name; empty for what is none."""
    if name.startswith(_COMMUNICATION):
        return "communication"
    if not name.startswith("aten::"):
        return ""
    plain = name.removeprefix("aten::")
    known = {str(op).rpartition(".")[2] for op in flop_registry}
    return "products" if plain in known or plain.startswith((*_LIBRARIES, *_ATTENTION)) else "other"
