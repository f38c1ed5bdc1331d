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
