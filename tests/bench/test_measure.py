"""Figures of a short training: they fit together, and are those of the rows it was fed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from beni.bench.measure import Windows, measure
from beni.data.loader import batches
from beni.errors import DataError
from beni.flops.account import FlopMeter
from beni.flops.count import Flops
from beni.processes import processes
from beni.testing.launch import run_ranks
from beni.training import freeze
from beni.training.checkpoint import Position
from beni.training.loop import train_loop
from beni.training.prepare import prepare
from tests.training.small import FUSIONS, SHAPES, small_run, text_file

PLAN = Windows(warmup_steps=2, windows=3, window_steps=2, profiled=1)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_figures_are_those_of_the_rows(tmp_path: Path, fusion: str, capfd: pytest.CaptureFixture[str]) -> None:
    data: dict[str, Any] = {"data": [SHAPES, text_file(tmp_path)], "weights": [0.2, 0.8]}  # rows without an image, too
    config = small_run(tmp_path / "run", data=data, **FUSIONS[fusion])
    row = measure(config, PLAN)
    assert "profiler" not in capfd.readouterr().err, "of itself it tells nothing"
    assert json.loads(json.dumps(row)) == row

    with processes(config.run) as procs:
        run = prepare(config, procs, None)
        freeze.apply(run.built.model, run.table)
        meter = FlopMeter(run.built.model)
        steps = list(batches(run.feed, Position().place, PLAN.total, 0))[PLAN.warmup_steps : PLAN.timed]
    rows = [each for _, step in steps for each in step]
    samples, images = sum(r.stats.samples for r in rows), sum(r.stats.images for r in rows)
    assert any(not r.stats.images for r in rows) and images
    counted = [meter.row(r) for r in rows]
    full = sum((flops for each in counted for flops in each.full.values()), Flops())
    assert row["flops_per_sample"] == pytest.approx(full.model / samples)
    assert row["positions_per_sample"] == pytest.approx(sum(r.stats.tokens for r in rows) / samples)
    assert row["visual_tokens_per_image"] == pytest.approx(sum(r.stats.visual_tokens for r in rows) / images)
    by_part = row["flops_per_sample_by_part"]
    assert sum(sum(each.values()) for each in by_part.values()) == pytest.approx(row["flops_per_sample"])
    assert by_part.keys() == {"encoder.main", "connector", "llm", "head"} | ({"fusion"} if fusion == "xattn" else set())

    assert row["mfu"] == pytest.approx(row["flops_per_s"] / row["peak"]["flops_per_s"])
    assert row["hfu"] == pytest.approx(row["mfu"]) and row["mfu"] > row["mfu_causal"] > 0
    low, high = row["samples_per_s_quartiles"]
    assert low <= row["samples_per_s"] <= high
    assert row["images_per_s"] < row["samples_per_s"] < row["positions_per_s"]
    split = dict(row["step_split"])
    split.pop("communication")
    assert sum(split.values()) == pytest.approx(1) and min(split.values()) >= 0
    assert row["regime"] and row["regime"] in row["regime_why"]
    assert row["estimates_per_sample"].keys() == {"kaplan", "chinchilla", "palm", "megatron"}
    assert row["connector"] == config.connector.plugin.name and row["encoder"] == "tiny" and row["processes"] == 1


def test_what_is_measured_is_what_is_trained(tmp_path: Path) -> None:
    """The stopwatch and the profiler change no bit."""
    config = small_run(tmp_path / "run")
    seen: list[torch.Tensor] = []

    def losses() -> list[torch.Tensor]:
        taken, seen[:] = list(seen), []
        return taken

    def loop(*arguments: Any, **named: Any) -> Any:
        after = named.pop("after_step")

        def after_step(step: Any) -> None:
            seen.append(step.loss.clone())
            after(step)

        return train_loop(*arguments, **named, after_step=after_step)

    from beni.bench import measure as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_loop", loop)
        measure(config, PLAN)
    measured = losses()

    from beni.training import run as training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_loop", loop)
        training.train(small_run(tmp_path / "whole", optim={"steps": PLAN.total}))
    whole = losses()
    assert len(measured) == len(whole) == PLAN.total and all(map(torch.equal, measured, whole))


def test_recomputed_activations_are_hardware_flops(tmp_path: Path) -> None:
    plain, full = (
        measure(small_run(tmp_path / kind, run={"activation_checkpointing": kind}), PLAN) for kind in ("none", "full")
    )
    selective = measure(small_run(tmp_path / "selective", run={"activation_checkpointing": "selective"}), PLAN)
    assert plain["flops_per_sample"] == full["flops_per_sample"] == selective["flops_per_sample"]
    assert plain["hfu"] == pytest.approx(plain["mfu"]) and full["hfu"] > 1.1 * full["mfu"]
    assert selective["mfu"] <= selective["hfu"] < 1.05 * selective["mfu"], "products are kept"


def test_a_device_that_nobody_knows_has_no_mfu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from beni.bench import measure as module

    monkeypatch.setattr(module, "peak_of", lambda *_: None)
    row = measure(small_run(tmp_path / "run"), PLAN)
    assert (row["mfu"], row["mfu_causal"], row["hfu"], row["peak"]) == (None, None, None, None)
    assert row["flops_per_s"] > 0


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_window_lasts_as_long_as_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmup: int) -> None:
    """A clock that only the loop turns on: a second for each step, whatever else looks at it."""
    from beni.bench import measure as module

    now = 0.0

    def loop(*arguments: Any, **named: Any) -> Any:
        after = named.pop("after_step")

        def after_step(step: Any) -> None:
            nonlocal now
            now += 1.0
            after(step)

        return train_loop(*arguments, **named, after_step=after_step)

    monkeypatch.setattr(module, "train_loop", loop)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    row = measure(small_run(tmp_path / "run"), Windows(warmup, windows=2, window_steps=3, profiled=1))
    assert row["step_s"] == 1.0
    assert row["flops_per_s"] == pytest.approx(row["flops_per_sample"] * row["samples_per_s"], rel=0.3)


def test_data_of_which_nothing_can_be_read_is_told(tmp_path: Path) -> None:
    items = [
        {
            "id": f"n{n}",
            "image": "gone.png",
            "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}],
        }
        for n in range(8)
    ]
    (tmp_path / "bad.json").write_text(json.dumps(items))
    config = small_run(tmp_path / "run", data={"data": [f"llava:{tmp_path / 'bad.json'}"]})
    with pytest.raises(DataError, match=r"no sample could be trained on: \d samples? left out; 'n\d': .*gone\.png"):
        measure(config, PLAN)


def _measured(out: str, file: str) -> None:
    row = measure(small_run(Path(out), run={"peak_tflops": 1.0}), PLAN)
    if row and os.environ["RANK"] == "0":
        Path(file).write_text(json.dumps(row))


def test_two_processes_share_the_rows_and_add_up_their_peaks(tmp_path: Path) -> None:
    """What a sample costs is what it costs one process; what could be computed in the time is twice as much."""
    run_ranks(_measured, 2, str(tmp_path / "two"), str(tmp_path / "row.json"))
    two = json.loads((tmp_path / "row.json").read_text())
    one = measure(small_run(tmp_path / "one", run={"peak_tflops": 1.0}), PLAN)
    assert (two["processes"], one["processes"]) == (2, 1)
    for name in ("flops_per_sample", "positions_per_sample", "visual_tokens_per_image"):
        assert two[name] == pytest.approx(one[name])
    assert two["mfu"] == pytest.approx(two["flops_per_s"] / 2e12) and one["mfu"] == pytest.approx(
        one["flops_per_s"] / 1e12
    )
