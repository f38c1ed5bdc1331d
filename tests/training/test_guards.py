"""Steps that would ruin a model: decided by all processes together, named, left out or ended."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from beni.errors import BeniError
from beni.testing.launch import run_ranks
from beni.training import loop
from beni.training.run import train
from tests.training.small import small_run

BAD_STEP = 2


def _train_with_a_bad_step(out: str, rank: str, options: dict[str, Any], run: dict[str, Any] | None = None) -> None:
    """Train two rows a step; in the second step one process's gradient of the connector is infinite in one place."""
    calls = 0
    original = loop.clip

    def clip(parameters: list[torch.nn.Parameter], largest: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == BAD_STEP and os.environ.get("RANK", "0") == rank:
            bad = next(p for p in reversed(parameters) if p.grad is not None)
            local = bad.grad.to_local() if hasattr(bad.grad, "to_local") else bad.grad  # type: ignore[union-attr]
            local.view(-1)[:1] = torch.inf
        return original(parameters, largest)

    loop.clip = clip
    try:
        train(small_run(Path(out), optim={"steps": 4, **options}, run=run or {}))
    finally:
        loop.clip = original


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_gradient_that_is_not_finite_stops_the_run_by_name(tmp_path: Path) -> None:
    with pytest.raises(BeniError, match=r"step 2: the gradient of 'connector\.\S+' is not finite, and 0 steps"):
        _train_with_a_bad_step(str(tmp_path / "run"), "0", {})


def test_such_a_step_is_left_out_if_allowed_and_told(tmp_path: Path) -> None:
    _train_with_a_bad_step(str(tmp_path / "run"), "0", {"skip_steps": 1})
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["skipped_steps"]) == (4, 1)
    told = [line for line in lines(tmp_path / "run") if "skipped" in line]
    assert [line["step"] for line in told] == [BAD_STEP] and "connector" in told[0]["skipped"]
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 3, 4]
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run/model/model.safetensors").values())


def test_saving_before_the_first_step_that_is_taken_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.training.test_guards.BAD_STEP", 1)
    saved = []
    for name, every in (("often", 1), ("never", 0)):
        out = tmp_path / name
        _train_with_a_bad_step(str(out), "0", {"skip_steps": 1}, {"checkpoint_every": every, "out": str(out)})
        saved.append(load_file(out / "model/model.safetensors"))
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_a_stopped_run_goes_on_when_the_step_may_be_left_out(tmp_path: Path) -> None:
    run = {"checkpoint_every": 1, "out": str(tmp_path)}
    with pytest.raises(BeniError, match="leave it out with --skip-steps and --resume auto"):
        _train_with_a_bad_step(str(tmp_path), "0", {}, run)
    _train_with_a_bad_step(str(tmp_path), "nobody", {"skip_steps": 1}, {**run, "resume": "auto"})
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 4


def test_what_one_process_sees_all_leave_out(tmp_path: Path) -> None:
    run_ranks(_train_with_a_bad_step, 2, str(tmp_path / "run"), "1", {"skip_steps": 1})
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["skipped_steps"]) == (4, 1)
    assert "connector" in next(line["skipped"] for line in lines(tmp_path / "run") if "skipped" in line)


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients may be: the infinity of a constant has none."""
    from beni.model.modeling import BeniForConditionalGeneration as Model

    original = Model.packed_loss
    monkeypatch.setattr(Model, "packed_loss", lambda self, *row: original(self, *row) + torch.inf)
    with pytest.raises(BeniError, match="step 1: the loss is not finite"):
        train(small_run(tmp_path / "run"))


def test_a_trained_part_that_gets_no_gradient_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only in the first step: the freeze table is held against every one."""
    from beni.errors import ConfigError
    from beni.model.modeling import BeniForConditionalGeneration as Model

    original, calls = Model.see, 0

    def see(self: Model, visual: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 2:
            return original(self, visual)
        with torch.no_grad():
            return original(self, visual)

    monkeypatch.setattr(Model, "see", see)
    with pytest.raises(ConfigError, match=r"^encoder\.main is to be trained but no gradient reached it: .* cuts"):
        train(small_run(tmp_path / "run", batch={"rows": 1}))


def test_a_norm_that_overflows_is_not_called_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number is finite, the sum of their squares is not."""
    from beni.model.modeling import BeniForConditionalGeneration as Model

    original = Model.packed_loss
    monkeypatch.setattr(Model, "packed_loss", lambda self, *row: 1e30 * original(self, *row))
    with pytest.raises(BeniError, match="step 1: the norm of the gradient is not finite"):
        train(small_run(tmp_path / "run"))
