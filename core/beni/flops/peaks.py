"""What a device can compute at most: the denominator of MFU and HFU.

Makers give figures for dense products and, twice as high, for sparse ones; these are the dense ones, with sums in fp32.
A device that is not in the table by its exact name has no known peak: a variant with another clock, or a share of one
(MIG), would make a wrong MFU look like a right one.
"""

import time
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch

Precision = Literal["bf16", "fp16", "tf32", "fp32"]

GIGA = 10**9
"""The table has TFLOP/s with at most three digits behind the point."""
MEASURED_SIZES, MEASURED_S, LEAST_PRODUCTS, QUICK_S = (512, 1024, 2048, 4096), 0.1, 3, 0.02
"""Of products that make the peak of a CPU: their sizes, and of each size how long, and how many; larger ones are tried
where a product was this quick."""


class _Dense(NamedTuple):
    """Dense peaks in TFLOP/s; None where the device has no units for it."""

    bf16: float | None
    tf32: float | None
    fp32: float
    fp16: float


def _alike(bf16: float, tf32: float | None, fp32: float) -> _Dense:
    """Of a device that computes in bf16 as fast as in fp16."""
    return _Dense(bf16, tf32, fp32, bf16)


_A100 = _alike(312, 156, 19.5)
_H100_SXM = _alike(989.4, 494.7, 66.9)
_V100_SXM = _Dense(None, None, 15.7, 125)
_V100_PCIE = _Dense(None, None, 14, 112)

PEAKS: dict[str, _Dense] = {
    # A100 datasheet, NVIDIA 2021
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    # H100 architecture whitepaper, table 2; H100 datasheet for NVL; H200 datasheet
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 PCIe": _alike(756, 378, 51.2),
    "NVIDIA H100 NVL": _alike(835.5, 417.5, 60),
    "NVIDIA H200": _H100_SXM,
    # HGX B200 datasheet: an eighth of the board
    "NVIDIA B200": _alike(2250, 1125, 75),
    # L4, L40S datasheets
    "NVIDIA L4": _alike(121, 60, 30.3),
    "NVIDIA L40S": _alike(362.05, 183, 91.6),
    # A10G: the variant of the A10 that AWS has, with fewer tensor cores in use
    "NVIDIA A10G": _alike(70, 35, 35),
    # T4, V100 datasheets
    "Tesla T4": _Dense(None, None, 8.1, 65),
    "Tesla V100-SXM2-16GB": _V100_SXM,
    "Tesla V100-SXM2-32GB": _V100_SXM,
    "Tesla V100-PCIE-16GB": _V100_PCIE,
    "Tesla V100-PCIE-32GB": _V100_PCIE,
    # Ada and Ampere GA102 whitepapers: with sums in fp32, half as fast as with sums in fp16
    "NVIDIA GeForce RTX 4090": _alike(165.2, 82.6, 82.6),
    "NVIDIA GeForce RTX 3090": _alike(71, 35.6, 35.6),
    # MI300X datasheet, AMD 2023
    "AMD Instinct MI300X": _alike(1307.4, 653.7, 163.4),
}
"""By what `torch.cuda.get_device_name` says."""


class Peak(NamedTuple):
    """What a device can compute at most."""

    flops_per_s: float
    precision: Precision
    source: str
    """Where the figure is from, for people."""


def precision_of(dtype: torch.dtype, device: torch.device) -> Precision:
    """In which precision products are computed, of tensors of a type."""
    if dtype != torch.float32:
        return "bf16" if dtype == torch.bfloat16 else "fp16"
    return "tf32" if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest" else "fp32"


def peak_of(device: torch.device, dtype: torch.dtype, tflops: float | None = None) -> Peak | None:
    """The peak of a device, or None where nobody knows it.

    Args:
        device: of a CPU the peak is measured, with the threads that PyTorch uses.
        dtype: that is computed in.
        tflops: in TFLOP/s, from somebody who knows better.
    """
    precision = precision_of(dtype, device)
    if tflops is not None:
        return Peak(tflops * 1e12, precision, "given")
    if device.type == "cpu":
        return measured(dtype, torch.get_num_threads())
    name = torch.cuda.get_device_name(device)
    dense = getattr(PEAKS.get(name), precision, None)
    return None if dense is None else Peak(round(dense * 1000) * GIGA, precision, f"dense {precision} of {name}")


def limit_of(peaks: Sequence[Peak | None]) -> float | None:
    """Operations per second of several devices together, or None where one of them is not known."""
    return sum(peak.flops_per_s for peak in peaks if peak) if all(peaks) else None


@cache
def measured(
    dtype: torch.dtype, threads: int, sizes: tuple[int, ...] = MEASURED_SIZES, seconds: float = MEASURED_S
) -> Peak:
    """The fastest product of square matrices on this CPU; it is measured once in a process.

    Args:
        dtype: that is computed in.
        threads: that PyTorch uses.
        sizes: of the matrices, ascending: which is fastest depends on the caches, and on the number of cores.
        seconds: of each size; but of each there are three products at least.
    """
    best, at = 0.0, 0
    for size in sizes:
        a, b = torch.ones(2, size, size, dtype=dtype)  # drawn numbers would be missing where training draws
        out = torch.empty(size, size, dtype=dtype)
        taken: list[float] = []
        while len(taken) < LEAST_PRODUCTS or sum(taken) < seconds:
            started = time.perf_counter()
            torch.mm(a, b, out=out)
            taken.append(time.perf_counter() - started)
        speed = 2 * size**3 / min(taken)
        if speed > best:
            best, at = speed, size
        if min(taken) > QUICK_S:
            break
    precision = precision_of(dtype, torch.device("cpu"))
    return Peak(best, precision, f"measured: {precision} product of {at}², {threads} threads")
