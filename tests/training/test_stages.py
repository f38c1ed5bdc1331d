"""Stages: runs one behind the other, each from the weights of the last."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from beni.config import RunConfig
from beni.errors import ConfigError
from beni.testing.launch import run_ranks
from beni.training import stages
from beni.training.stages import train_stages
from tests.training.small import small_run


def two(folder: Path, resume: str = "never", **changes: dict[str, Any]) -> dict[str, RunConfig]:
    """The connector alone, then the language model as well."""
    run = {"resume": resume, "checkpoint_every": 1} | changes.pop("run", {})
    return {
        "align": small_run(folder, optim={"train": ["connector"], "steps": 2}, run=run, **changes),
        "tune": small_run(folder, optim={"train": ["connector", "llm"], "steps": 2}, run=run, **changes),
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_each_starts_from_the_last_ones_weights(tmp_path: Path) -> None:
    """Nothing that the second stage freezes has other bits than the first one left it with."""
    seen: list[dict[str, Any]] = []
    results = train_stages(two(tmp_path), tmp_path, done=seen.append)
    assert list(results) == ["align", "tune"] and seen == list(results.values())
    one, last = weights(tmp_path / "align"), weights(tmp_path / "tune")
    assert one.keys() == last.keys()
    same = {name.split(".")[0] for name in one if torch.equal(one[name], last[name])}
    assert same == {"encoders"}
    config = json.loads((tmp_path / "tune" / "config.json").read_text())
    assert config["loaded"]["encoder.main"]["origin"] == str(tmp_path / "align" / "model")
    assert config["optim"]["init"] == str(tmp_path / "align" / "model")


def test_stages_that_ended_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second, continued with the first one's result; the end has the bits of an uninterrupted one."""
    whole = tmp_path / "whole"
    train_stages(two(whole), whole)
    (whole / "tune" / "result.json").unlink()
    (whole / "tune" / "checkpoints" / "latest").write_text("step-00000001")
    before = weights(whole / "tune")
    trained = []
    original = stages.train
    monkeypatch.setattr(stages, "train", lambda config: trained.append(config.run.out) or original(config))
    results = train_stages(two(whole, resume="auto"), whole)
    assert trained == [str(whole / "tune")] and list(results) == ["align", "tune"]
    again = weights(whole / "tune")
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_a_stage_that_ended_with_other_options_is_not_taken_for_this_one(tmp_path: Path) -> None:
    train_stages(two(tmp_path), tmp_path, only="align")
    other = two(tmp_path, resume="auto", batch={"row_tokens": 256})
    with pytest.raises(
        ConfigError, match=r"stage align has ended in .*, with other options \(--row-tokens 512, now 256\)"
    ):
        train_stages(other, tmp_path)
    assert list(train_stages(two(tmp_path, resume="auto", data={"eval_limit": 2}), tmp_path)) == ["align", "tune"]


def test_a_stage_that_ended_from_another_start_is_not_taken_for_this_one(tmp_path: Path) -> None:
    train_stages(two(tmp_path), tmp_path)
    shutil.rmtree(tmp_path / "align")
    with pytest.raises(ConfigError, match=r"stage tune has ended in .*tune, from another align than was trained now"):
        train_stages(two(tmp_path, resume="auto"), tmp_path)


def test_where_stages_start(tmp_path: Path) -> None:
    """One `init` for all, as from the command line, is that of the first; or of the only one that is trained."""

    def starts(align: str, tune: str, only: str = "") -> list[str]:
        configs = two(tmp_path)
        for name, init in (("align", align), ("tune", tune)):
            configs[name] = replace(configs[name], optim=replace(configs[name].optim, init=init))
        return [config.optim.init for config in stages.chained(configs, "out", only).values()]

    assert starts("", "") == ["", "out/align/model"]
    assert starts("a", "a") == ["a", "out/align/model"]
    assert starts("a", "b") == ["a", "b"]
    assert starts("a", "a", only="tune")[1] == "a"
    assert starts("a", "", only="tune")[1] == "out/align/model"


@pytest.mark.parametrize(("names", "only"), [(["align", "tune"], "tun"), ([], "")])
def test_stages_that_are_not_there(tmp_path: Path, names: list[str], only: str) -> None:
    with pytest.raises(ConfigError, match="there is no stage"):
        train_stages({name: config for name, config in two(tmp_path).items() if name in names}, tmp_path, only)


def test_one_stage_alone_starts_from_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--init .*align.model: no saved model there"):
        train_stages(two(tmp_path), tmp_path, only="tune")
    train_stages(two(tmp_path), tmp_path, only="align")
    assert not (tmp_path / "tune").exists()
    assert list(train_stages(two(tmp_path), tmp_path, only="tune")) == ["tune"]


def test_a_dry_run_shows_what_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_stages(two(tmp_path, run={"dry_run": True}), tmp_path)
    shown = capsys.readouterr().out
    assert "stage align: " in shown and "connector" in shown
    assert "stage tune starts from" in shown and "which is not there yet" in shown


def test_a_checkpoint_belongs_to_one_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which stage is that"):
        train_stages(two(tmp_path, resume="some/checkpoint"), tmp_path)


def _train(folder: str) -> None:
    train_stages(two(Path(folder)), folder)
    assert os.environ["WORLD_SIZE"] == "2"


def test_two_processes(tmp_path: Path) -> None:
    run_ranks(_train, 2, str(tmp_path / "two"))
    train_stages(two(tmp_path / "one"), tmp_path / "one")
    one, other = weights(tmp_path / "one" / "tune"), weights(tmp_path / "two" / "tune")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
