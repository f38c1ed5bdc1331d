"""`--dtype auto` is bf16 where that is faster: on GPUs that have it, and on CPUs that do, for wide language models."""

from pathlib import Path

import pytest
import torch

from beni.model.build import build
from beni.processes import processes
from beni.training import precision as module
from beni.training.precision import precision
from beni.training.run import train
from tests.training.small import small_run


@pytest.mark.parametrize(
    ("amx", "avx", "wide", "wanted", "expected"),
    [
        (True, False, True, "auto", torch.bfloat16),
        (False, True, True, "auto", torch.bfloat16),
        (True, True, False, "auto", torch.float32),
        (False, False, True, "auto", torch.float32),
        (False, False, False, "bf16", torch.bfloat16),
        (True, True, True, "fp32", torch.float32),
    ],
)
def test_auto(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    amx: bool,
    avx: bool,
    wide: bool,
    wanted: str,
    expected: torch.dtype,
) -> None:
    _cpu_with(monkeypatch, amx=amx, avx=avx)
    config = small_run(tmp_path)
    model = build(config, ["x"]).model
    monkeypatch.setattr(module, "WIDE", 32 if wide else 33)
    with processes(config.run) as procs:
        assert precision(wanted, model, procs) is expected
        assert precision("auto", model, procs, torch.bfloat16) is torch.bfloat16, "as it was begun"


def test_a_run_goes_on_in_the_precision_it_began_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on another machine, whose CPU cannot multiply bf16."""
    monkeypatch.setattr(module, "WIDE", 32)
    _cpu_with(monkeypatch, amx=True)
    train(small_run(tmp_path / "run", run={"checkpoint_every": 2}))
    _cpu_with(monkeypatch)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-00000002")
    assert train(small_run(tmp_path / "run", run={"checkpoint_every": 2, "resume": "auto"}))["dtype"] == "bfloat16"


def _cpu_with(monkeypatch: pytest.MonkeyPatch, amx: bool = False, avx: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
