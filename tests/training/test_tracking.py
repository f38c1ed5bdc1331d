"""A run in Weights & Biases: offline, the same run when it is continued, and refused in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from beni.errors import ConfigError, Stopped
from beni.training.run import train
from beni.training.tracking import tracked
from tests.training.small import small_run


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


class Recorded:
    """In place of `wandb.init`: what was begun, logged and ended."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.lines: list[dict[str, float]] = []
        self.summary: dict[str, float] = {}
        self.ended: list[int] = []

    def __call__(self, **arguments: Any) -> "Recorded":
        self.begun.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, line: dict[str, float]) -> None:
        self.lines.append(line)

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr("wandb.init", recorded)
    return recorded


def test_what_is_logged_and_found_is_told(tmp_path: Path, recorded: Recorded) -> None:
    config = small_run(tmp_path / "run", run={"wandb": "which"})
    result = train(config)
    [begun] = recorded.begun
    assert (begun["project"], begun["name"], begun["dir"]) == ("which", "run", tmp_path / "run")
    assert begun["config"]["optim"]["steps"] == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in recorded.lines] == [line["step"] for line in lines]
    assert recorded.lines[0]["loss"] == lines[0]["loss"] and recorded.lines[0]["mfu"] == lines[0]["mfu"]
    assert recorded.summary["accuracy"] == result["accuracy"]
    assert recorded.summary["peak/flops_per_s"] == result["peak"]["flops_per_s"]
    assert recorded.ended == [0]


def test_a_run_that_goes_on_is_the_same_run_there(tmp_path: Path, recorded: Recorded) -> None:
    for _ in range(2):
        with tracked("which", tmp_path, {}):
            pass
    first, second = recorded.begun
    assert first["id"] == second["id"] and first["resume"] == second["resume"] == "allow"


def test_a_run_that_fails_failed_there_too(tmp_path: Path, recorded: Recorded) -> None:
    with pytest.raises(RuntimeError), tracked("which", tmp_path, {}):
        raise RuntimeError("in the middle")
    assert recorded.ended == [1]


def test_a_run_that_was_asked_to_stop_has_not_failed(tmp_path: Path, recorded: Recorded) -> None:
    with pytest.raises(Stopped), tracked("which", tmp_path, {}):
        raise Stopped("saved")
    assert recorded.ended == [0]


def test_training_goes_on_when_the_service_dies(
    tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(line: object) -> None:
        raise BrokenPipeError("gone")

    monkeypatch.setattr(recorded, "log", die)
    result = train(small_run(tmp_path / "run", run={"wandb": "which"}))
    assert capsys.readouterr().err.count("warning: Weights & Biases is lost (BrokenPipeError: gone)") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result["steps"] == 4 and [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_what_could_not_be_told_at_the_end_is_told_here(
    tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(exit_code: int) -> None:
        raise TimeoutError("nobody answers")

    monkeypatch.setattr(recorded, "finish", die)
    with tracked("which", tmp_path, {}):
        pass
    assert "Weights & Biases is lost (TimeoutError: nobody answers)" in capsys.readouterr().err


def test_offline_everything_stays_in_the_folder(tmp_path: Path) -> None:
    """By wandb itself."""
    with tracked("which", tmp_path, {"optim": {"steps": 1}}) as tracker:
        tracker.log({"step": 1, "loss": 1.5, "note": "no number", "bad": float("nan")})
        tracker.summarize({"accuracy": 0.5})
    [folder] = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith((tmp_path / "wandb.id").read_text().strip())
    assert any(path.suffix == ".wandb" and path.stat().st_size for path in folder.iterdir())


def test_without_the_package_the_way_to_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[wandb\]'"), tracked("which", tmp_path, {}):
        pass
    with tracked("", tmp_path, {}) as nobody:
        nobody.log({"step": 1})


def test_a_refusal_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr("wandb.init", refuse)
    with pytest.raises(ConfigError) as error, tracked("which", tmp_path, {}):
        pass
    assert "No API key configured" in str(error.value) and "WANDB_MODE=offline" in str(error.value)
    assert "\n" not in str(error.value)
