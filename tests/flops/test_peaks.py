"""Peaks of devices: by exact name and precision, or none."""

import pytest
import torch

from beni.flops.peaks import PEAKS, Peak, limit_of, measured, peak_of

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU, as far as its name goes."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    return monkeypatch


def test_a_known_gpu_has_a_peak_for_each_precision(named: pytest.MonkeyPatch) -> None:
    assert peak_of(CUDA, torch.bfloat16) == Peak(989.4e12, "bf16", "dense bf16 of NVIDIA H100 80GB HBM3")
    peak = peak_of(CUDA, torch.float32)
    assert peak is not None and (peak.flops_per_s, peak.precision) == (66.9e12, "fp32")
    named.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    peak = peak_of(CUDA, torch.float32)
    assert peak is not None and (peak.flops_per_s, peak.precision) == (494.7e12, "tf32")


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100", "nvidia h200", "Some GPU"])
def test_a_name_that_is_only_similar_has_none(named: pytest.MonkeyPatch, name: str) -> None:
    named.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_of(CUDA, torch.bfloat16) is None
    assert peak_of(CUDA, torch.bfloat16, tflops=100) == Peak(100e12, "bf16", "given")


def test_a_gpu_without_units_for_a_precision_has_none(named: pytest.MonkeyPatch) -> None:
    named.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert peak_of(CUDA, torch.bfloat16) is None
    fp16 = peak_of(CUDA, torch.float16)
    assert fp16 is not None and fp16.flops_per_s == 65e12


def test_dense_figures_are_ordered() -> None:
    """A figure with sparsity, or in the wrong column, would break the order."""
    for name, dense in PEAKS.items():
        assert dense.fp32 <= (dense.tf32 or dense.fp32) <= (dense.bf16 or dense.fp16) <= dense.fp16, name
        if dense.tf32 and dense.bf16:
            assert dense.bf16 == pytest.approx(2 * dense.tf32, rel=0.02), name


def test_that_of_a_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest product of the best size; once."""
    small, large = [0.0, 0.4, 1.0, 1.01, 2.0, 2.4], [3.0, 3.4, 4.0, 5.0, 6.0, 6.05]
    ticks = iter([*small, *large])  # of the largest nothing is measured: there is no tick left
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    peaks = [measured(torch.float32, 2, sizes=(10, 20, 40), seconds=0.5) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before), "a run that goes on draws what it would have drawn"
    assert peaks[0].flops_per_s == pytest.approx(2 * 20**3 / 0.05)
    assert peaks[0].source == "measured: fp32 product of 20², 2 threads" and peaks[1] is peaks[0]


def test_several_devices_together_or_nobody_knows() -> None:
    one, two = (Peak(flops, "bf16", "") for flops in (1e12, 3e12))
    assert limit_of([one, two]) == 4e12
    assert limit_of([one, None]) is None


def test_peak_of_a_cpu() -> None:
    peak = peak_of(CPU, torch.float32)
    assert peak is not None and peak.flops_per_s > 0
    assert peak_of(CPU, torch.float32, tflops=2) == Peak(2e12, "fp32", "given")
