"""How a model is laid out over processes changes nothing of what is learned, and costs no needless communication."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from beni.config import RunOptions
from beni.errors import ConfigError
from beni.processes import processes
from beni.testing.launch import run_ranks
from beni.training import ready
from beni.training.parallel import parallelize
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
    changes["run"] |= {"replicas": 2, "frozen_encoders": "replicated", "resume": "auto"}
    run_ranks(_train, 2, out, changes)
    computed = json.loads((tmp_path / "run" / "result.json").read_text())["computed"]
    assert [(part["from_step"], part["replicas"]) for part in computed] == [(0, 1), (2, 2)]


class Counted:
    """Calls of collectives of torch's, by whichever of these names its version has."""

    def __init__(self, *names: str) -> None:
        self.calls = 0
        for name in set(names) & set(dir(dist)):
            setattr(dist, name, self._counted(getattr(dist, name)))

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def collective(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            return original(*arguments, **named)

        return collective


PLACES = ("sharded", "replicated", "root")


def _lay_out(out: str) -> None:
    """Train with the encoder frozen, wherever it lies; notes how often weights were gathered, and its size here."""
    sizes: list[int] = []

    def noted(model: Any, *arguments: Any) -> None:
        parallelize(model, *arguments)
        sizes.append(sum(p.to_local().numel() for p in model.encoders.parameters()))

    gathered, before = Counted("all_gather_single", "all_gather_into_tensor"), 0
    ready.parallelize = noted
    with processes(RunOptions(device="cpu")):  # one group for all
        for place in PLACES:
            changes: dict[str, Any] = {"frozen_encoders": place, "eval_every": 100, "out": f"{out}/{place}"}
            optim: dict[str, Any] = {"train": ["connector", "llm"], "steps": 3}
            train(small_run(Path(out) / place, run=changes, optim=optim, data={"eval_limit": 2}))
            note = json.dumps([gathered.calls - before, sizes[-1]])
            Path(f"{out}/{place}-{os.environ['RANK']}.json").write_text(note)
            before = gathered.calls


def test_where_a_frozen_encoder_lies_changes_nothing_but_memory_and_communication(tmp_path: Path) -> None:
    run_ranks(_lay_out, 2, str(tmp_path))
    results = {place: json.loads((tmp_path / place / "result.json").read_text()) for place in PLACES}
    weights = {place: load_file(tmp_path / place / "model/model.safetensors") for place in PLACES}
    for place in PLACES[1:]:
        assert results[place]["eval_loss"] == results["sharded"]["eval_loss"]
        assert weights[place].keys() == weights["sharded"].keys()
        assert all(torch.equal(weights[place][name], tensor) for name, tensor in weights["sharded"].items())
    notes = {(p, r): json.loads((tmp_path / f"{p}-{r}.json").read_text()) for p in PLACES for r in (0, 1)}
    gathered = {place: notes[place, 0][0] for place in PLACES}
    assert gathered["sharded"] > gathered["root"] and gathered["sharded"] > gathered["replicated"], gathered
    whole = results["sharded"]["parameters"]["per_part"]["encoder.main"]
    assert [notes["replicated", rank][1] for rank in (0, 1)] == [whole, whole]
    for place in ("sharded", "root"):
        assert sum(notes[place, rank][1] for rank in (0, 1)) == whole


def _count_reductions(out: str, rows: int, fusion: str) -> None:
    """Train a step of so many rows; how often gradients were exchanged goes to a file."""
    reductions = Counted("reduce_scatter_single", "reduce_scatter_tensor")
    train(small_run(Path(out), batch={"rows": rows, "row_tokens": 100}, optim={"steps": 1}, **FUSIONS[fusion]))
    Path(f"{out}.count").write_text(str(reductions.calls))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_are_exchanged_once_per_step(tmp_path: Path, fusion: str) -> None:
    found = {}
    for rows in (2, 6):
        run_ranks(_count_reductions, 2, str(tmp_path / str(rows)), rows, fusion)
        found[rows] = int((tmp_path / f"{rows}.count").read_text())
    assert found[2] == found[6] > 0
