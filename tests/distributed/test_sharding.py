"""How a model is laid out over processes changes nothing of what is learned, and costs no needless communication."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from beni.errors import ConfigError
from beni.testing.launch import run_ranks
from beni.training.run import train
from tests.training.small import FUSIONS, small_run


def _train(out: str, changes: dict[str, dict[str, Any]]) -> None:
    train(small_run(Path(out), **changes))


def test_two_replicas_of_two_shards_equal_one_process(tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {"batch": {"rows": 4, "row_tokens": 100}}
    _train(str(tmp_path / "one"), changes)
    run_ranks(_train, 4, str(tmp_path / "four"), {**changes, "run": {"replicas": 2, "out": str(tmp_path / "four")}})
    logs = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "four")
    )
    first, second = logs
    for figure in ("loss", "grad_norm"):  # weights alone would not show gradients that are all too large
        found, wanted = ([line[figure] for line in lines if figure in line] for lines in (second, first))
        assert found == pytest.approx(wanted, rel=1e-4)
    one, four = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "four"))
    assert one.keys() == four.keys()
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=1e-4, atol=1e-5)


def test_replicas_that_do_not_divide_the_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--replicas 2 does not divide the number of processes, 1"):
        train(small_run(tmp_path / "run", run={"replicas": 2}))


def test_a_run_goes_on_with_other_replicas(tmp_path: Path) -> None:
    """What is frozen has the same checksum, however often it is there."""
    out = str(tmp_path / "run")
    changes: dict[str, dict[str, Any]] = {"optim": {"train": ["connector"]}, "run": {"checkpoint_every": 2}}
    run_ranks(_train, 2, out, changes)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-00000002")
    changes["run"] |= {"replicas": 2, "resume": "auto"}
    run_ranks(_train, 2, out, changes)
    computed = json.loads((tmp_path / "run" / "result.json").read_text())["computed"]
    assert [(part["from_step"], part["replicas"]) for part in computed] == [(0, 1), (2, 2)]


def _count_reductions(out: str, rows: int, fusion: str) -> None:
    """Train a step of so many rows; how often gradients were exchanged goes to a file."""
    calls = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def reduce_scatter(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            return original(*arguments, **named)

        return reduce_scatter

    for name in {"reduce_scatter_single", "reduce_scatter_tensor"} & set(dir(dist)):  # one of them, by torch's version
        setattr(dist, name, counted(getattr(dist, name)))
    train(small_run(Path(out), batch={"rows": rows, "row_tokens": 100}, optim={"steps": 1}, **FUSIONS[fusion]))
    Path(f"{out}.count").write_text(str(calls))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_are_exchanged_once_per_step(tmp_path: Path, fusion: str) -> None:
    found = {}
    for rows in (2, 6):
        run_ranks(_count_reductions, 2, str(tmp_path / str(rows)), rows, fusion)
        found[rows] = int((tmp_path / f"{rows}.count").read_text())
    assert found[2] == found[6] > 0
