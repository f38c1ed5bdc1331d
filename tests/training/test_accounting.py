"""A run says what it cost: the operations of its rows, what it waited for, and what it could not count."""

import json
import os
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from beni.data.loader import batches
from beni.errors import Uncountable
from beni.flops.account import FlopMeter
from beni.flops.figures import total
from beni.processes import processes
from beni.testing.launch import run_ranks
from beni.training import freeze
from beni.training.checkpoint import Position
from beni.training.prepare import prepare
from beni.training.run import train
from tests.training.small import FUSIONS, SHAPES, small_run, text_file


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "lr" in line]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_operations_are_those_of_the_rows(tmp_path: Path, fusion: str) -> None:
    data: dict[str, Any] = {"data": [SHAPES, text_file(tmp_path)], "weights": [0.2, 0.8]}  # rows without an image, too
    config = small_run(tmp_path / "run", data=data, run={"peak_tflops": 2.0, "log_every": 3}, **FUSIONS[fusion])
    result = train(config)
    with processes(config.run) as procs:
        run = prepare(small_run(tmp_path / "again", data=data, **FUSIONS[fusion]), procs, None)
        freeze.apply(run.built.model, run.table)
        meter = FlopMeter(run.built.model)
        rows = [row for _, step in batches(run.feed, Position().place, run.total, 0) for row in step]
    samples = sum(row.stats.samples for row in rows)
    operations = sum(total(meter.row(row).full).model for row in rows)
    assert result["flops_per_sample"] == pytest.approx(operations / samples)
    assert result["flops_per_s"] == pytest.approx(operations / result["train_s"])
    assert result["mfu"] == pytest.approx(result["flops_per_s"] / 2e12) and result["mfu_causal"] < result["mfu"]
    assert result["peak"] == {"flops_per_s": 2e12, "precision": "fp32", "source": "given"}
    by_part = result["flops_per_sample_by_part"]
    assert sum(sum(each.values()) for each in by_part.values()) == pytest.approx(result["flops_per_sample"])
    first, last = logged(tmp_path / "run")
    assert (first["step"], last["step"]) == (3, 4)
    for line in (first, last):
        assert 0 <= line["data_wait"] < 1 and 0 < line["mfu"] == pytest.approx(line["flops_per_s"] / 2e12)
        assert line["rss_bytes"] > 0 and "cpu_percent" in line and "gpu_power_w" not in line
    report = (tmp_path / "run" / "report.html").read_text()
    assert "What a sample costs" in report and "2.00 TFLOP/s for each device (given)" in report


def test_what_cannot_be_counted_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise Uncountable("the FLOPs of this model cannot be counted: it asks for values")

    monkeypatch.setattr("beni.training.ready.meter_of", refuse)
    result = train(small_run(tmp_path / "run"))
    told = "warning: no figures of FLOPs: the FLOPs of this model cannot be counted: it asks for values\n"
    assert capsys.readouterr().err.count(told) == 1
    assert result["steps"] == 4 and result["samples_per_s"] > 0
    assert (result["mfu"], result["flops_per_sample"]) == (None, None)
    assert all("flops_per_s" not in line and "samples_per_s" in line for line in logged(tmp_path / "run"))
    assert "What a sample costs" not in (tmp_path / "run" / "report.html").read_text()


def test_a_form_of_image_that_cannot_be_counted_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may come in the middle of a run."""
    monkeypatch.setattr(FlopMeter, "cost", _refuse)
    result = train(small_run(tmp_path / "run"))
    assert capsys.readouterr().err.count("warning: no figures of FLOPs: this form of image cannot be counted") == 1
    assert result["steps"] == 4 and result["flops_per_sample"] is None


def _train_uncounted(out: str, file: str) -> None:
    """A form of image comes that cannot be counted, and only the second process sees it."""
    if os.environ["RANK"] == "1":
        FlopMeter.cost = _refuse  # type: ignore[assignment,method-assign]
    with (Path(file) / os.environ["RANK"]).open("w") as told, redirect_stderr(told):
        train(small_run(Path(out)))


def _refuse(*_: object) -> None:
    raise Uncountable("this form of image cannot be counted")


def test_what_another_process_cannot_count_is_told_too(tmp_path: Path) -> None:
    run_ranks(_train_uncounted, 2, str(tmp_path / "run"), str(tmp_path))
    assert (tmp_path / "0").read_text().count("warning: no figures of FLOPs: this form of image cannot be counted") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["flops_per_sample"] is None


def test_a_device_that_nobody_knows_has_no_mfu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beni.training.callbacks.peak_of", lambda *_: None)
    result = train(small_run(tmp_path / "run"))
    assert (result["mfu"], result["hfu"], result["peak"]) == (None, None, None) and result["flops_per_s"] > 0
    assert "the peak of this device is not known" in (tmp_path / "run" / "report.html").read_text()
