"""The same run on a GPU; skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch

from beni.training.run import train
from tests.training.small import FUSIONS, small_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_a_gpu_computes_what_a_cpu_does(tmp_path: Path, fusion: str, dtype: str, tolerance: float) -> None:
    for device, precision in (("cpu", "fp32"), ("cuda", dtype)):
        out = tmp_path / device
        options = {"out": str(out), "device": device, "dtype": precision, "log_every": 1, "eval_every": 4}
        train(small_run(out, run=options, **FUSIONS[fusion]))
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=tolerance)


def test_memory_is_that_of_the_gpu(tmp_path: Path) -> None:
    result = train(small_run(tmp_path / "run", run={"out": str(tmp_path / "run"), "device": "cuda"}))
    assert 0 < result["peak_memory_bytes"] <= torch.cuda.get_device_properties(0).total_memory


def test_a_run_tells_of_the_gpu(tmp_path: Path) -> None:
    result = train(small_run(tmp_path / "run", run={"device": "cuda", "log_every": 1}))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert all(line["gpu_memory_bytes"] > 0 and line["gpu_clock_mhz"] > 0 for line in logged)
    assert result["flops_per_s"] > 0 and 0 <= result["data_wait"] < 1
    if (peak := result["peak"]) is not None:  # a GPU that the table knows
        assert result["mfu"] == pytest.approx(result["flops_per_s"] / peak["flops_per_s"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_a_feature_cache_changes_nothing(tmp_path: Path, dtype: str, tolerance: float) -> None:
    optim = {"train": ["connector", "llm"]}
    for name, cache in (("plain", ""), ("cached", str(tmp_path / "cache"))):
        options = {"device": "cuda", "dtype": dtype, "log_every": 1, "feature_cache": cache}
        train(small_run(tmp_path / name, optim=optim, run=options))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=tolerance)
