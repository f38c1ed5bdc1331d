"""A run over a stream: interrupted and shared, it is the same run."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from beni.errors import ConfigError, DataError
from beni.testing.launch import run_ranks
from beni.training.run import train
from tests.plugins.sources.test_hf import png
from tests.training.small import SHAPES, small_run
from tests.training.test_run import stop_after, train_whole_and_in_parts

COLOURS = ("red", "blue", "green", "black", "white", "gray")


@pytest.fixture
def spec(tmp_path: Path, datasets_apart: None) -> str:
    """Three dozen rows in three files, one of which makes no sample."""
    for file in range(3):
        numbers = range(12 * file, 12 * file + 12)
        columns = {
            "image": [{"bytes": png(COLOURS[n % 6]), "path": None} for n in numbers],
            "question": ["<image><image>" if n == 30 else "which colour" + "?" * (n % 4) for n in numbers],
            "answer": [COLOURS[n % 6] for n in numbers],
        }
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / "set" / f"train-{file}.parquet", batch_size=5)
    return f"hf:{tmp_path / 'set'}?streaming=true"


def changes(spec: str, **data: Any) -> dict[str, dict[str, Any]]:
    return {
        "data": {"data": [spec], "stream_block": 16, "eval_data": [SHAPES], "augment": 0.1, **data},
        "batch": {"rows": 2, "row_tokens": 80},
        "optim": {"steps": 14},
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [3, 5])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, spec: str, step: int, workers: int) -> None:
    train_whole_and_in_parts(step, tmp_path, changes(spec, workers=workers))
    epochs = [json.loads(line).get("epoch") for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {0, 1} <= set(epochs), "there are several blocks"


def _train(out: str, tables: dict[str, dict[str, Any]]) -> None:
    train(small_run(Path(out), **tables))


def test_two_processes_learn_from_a_mixture_what_one_does(tmp_path: Path, spec: str) -> None:
    tables = changes(spec, data=[spec, SHAPES], weights=[3, 1])
    one = train(small_run(tmp_path / "one", **tables))
    run_ranks(_train, 2, str(tmp_path / "two"), tables)
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    for figures in (one, two):
        assert [skipped["id"] for skipped in figures["skipped"]] == ["30"] and figures["unusable_samples"] == 0
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)
    first, second = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-4, atol=1e-5)


def test_two_processes_go_on_where_one_stopped(tmp_path: Path, spec: str) -> None:
    tables = changes(spec)
    train(small_run(tmp_path / "whole", **tables))
    with pytest.raises(KeyboardInterrupt):
        stop_after(9, small_run(tmp_path / "part", run={"checkpoint_every": 2}, **tables))
    run_ranks(_train, 2, str(tmp_path / "part"), tables | {"run": {"out": str(tmp_path / "part"), "resume": "auto"}})
    whole, part = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "part"))
    for name in whole:
        torch.testing.assert_close(part[name], whole[name], rtol=1e-4, atol=1e-5)


def test_what_a_stream_needs_is_asked_for(tmp_path: Path, spec: str) -> None:
    with pytest.raises(ConfigError, match="nobody knows when it ends: say --steps, --samples or --flops"):
        train(small_run(tmp_path / "a", **changes(spec) | {"optim": {"steps": 0}}))
    with pytest.raises(ConfigError, match="is a stream: say how often it is seen beside the others, with --weights"):
        train(small_run(tmp_path / "b", **changes(spec, data=[spec, SHAPES])))


def test_samples_and_operations_are_told_by_the_first_block(tmp_path: Path, spec: str) -> None:
    def result(**optim: float) -> dict[str, Any]:
        return train(small_run(tmp_path / next(iter(optim)), **changes(spec) | {"optim": {"steps": 0, **optim}}))

    seen = result(samples=56)
    assert seen["steps"] > 2 and seen["samples_per_s"] * seen["train_s"] == pytest.approx(56, rel=0.1)
    computed = result(flops=3e8)
    assert computed["steps"] > 2 and computed["flops_per_s"] * computed["train_s"] == pytest.approx(3e8, rel=0.1)


def test_a_bad_row_may_end_the_run(tmp_path: Path, spec: str) -> None:
    with pytest.raises(DataError, match="row 30"):
        train(small_run(tmp_path / "run", **changes(spec, on_bad_sample="error")))


def test_a_dry_run_shows_the_first_block(tmp_path: Path, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_run(tmp_path / "run", **changes(spec), run={"dry_run": True, "out": str(tmp_path / "run")}))
    said = capsys.readouterr().out
    assert f"data {spec}: 16 samples of each block" in said and "per block of 16 samples" in said
    assert (tmp_path / "run" / "sample.html").is_file()
