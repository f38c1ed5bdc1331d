"""The length of a training by samples or operations: what comes out is what was asked for."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from beni.data.loader import Rows, batches
from beni.errors import ConfigError, Uncountable
from beni.flops.account import FlopMeter
from beni.flops.figures import total
from beni.testing.launch import run_ranks
from beni.training import budget, freeze
from beni.training.checkpoint import Position
from beni.training.run import train
from tests.training.small import FUSIONS, SHAPES, small_run, text_file
from tests.training.test_features import prepared, run_with


def mixed(folder: Path, order: str = "shuffled") -> dict[str, dict[str, Any]]:
    """An epoch of some steps whose rows are of two kinds."""
    data = {"data": [SHAPES, text_file(folder, 40)], "weights": [0.4, 0.6], "eval_data": [SHAPES]}
    return {"data": data, "batch": {"rows": 2, "row_tokens": 100, "order": order}}


def samples_of(rows: Rows, steps: int) -> list[int]:
    """Of the first steps, each."""
    places = islice(rows.plan.walk(0, 0), steps)
    return [sum(len(tree) for row in rows.plan.step(*place) for tree in row) for place in places]


@pytest.mark.parametrize("wanted", [7, 100, 132, 3 * 132 + 40])
@pytest.mark.parametrize("order", ["shuffled", "length"])
def test_the_steps_hold_as_many_samples(tmp_path: Path, order: str, wanted: int) -> None:
    run = prepared(small_run(tmp_path / "run", optim={"steps": 0, "samples": wanted}, **mixed(tmp_path, order)))
    seen = samples_of(run.rows, run.total)
    assert abs(sum(seen) - wanted) <= max(seen)


def test_whole_epochs_of_samples_are_whole(tmp_path: Path) -> None:
    run = prepared(small_run(tmp_path / "run", optim={"steps": 0, "samples": 2 * 132}, **mixed(tmp_path)))
    assert sum(samples_of(run.rows, run.total)) == 2 * 132
    few = prepared(small_run(tmp_path / "run", optim={"steps": 0, "samples": 1}, **mixed(tmp_path)))
    assert few.total == 1


FLOPS = 7e8


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("order", ["shuffled", "modality"])
def test_the_steps_compute_as_much(tmp_path: Path, fusion: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if not every row of an epoch is counted."""
    monkeypatch.setattr(budget, "COUNTED", 12)
    changes = mixed(tmp_path, order) | FUSIONS[fusion] | {"optim": {"steps": 0, "flops": FLOPS}}
    run = prepared(small_run(tmp_path / "run", **changes))
    freeze.apply(run.built.model, run.table)
    meter = FlopMeter(run.built.model)
    rows = [row for _, step in batches(run.feed, Position().place, run.total, 0) for row in step]
    assert sum(total(meter.row(row).full).model for row in rows) == pytest.approx(FLOPS, rel=0.1)
    assert run.total > run.rows.plan.steps(0)


def test_a_cheaper_model_takes_more_steps_for_it(tmp_path: Path) -> None:
    """So does one of which less is trained; what a cache of features spares is none of the model's."""
    optim = {"steps": 0, "flops": 100 * FLOPS}
    whole, crossed = (prepared(small_run(tmp_path / name, optim=optim, **FUSIONS[name])).total for name in FUSIONS)
    frozen = prepared(run_with(tmp_path / "frozen", None, optim=optim))
    cached = prepared(run_with(tmp_path / "cached", tmp_path / "cache", optim=optim))
    assert crossed < whole < frozen.total == cached.total
    assert cached.cached is not None and frozen.cached is None


def test_a_dry_run_shows_the_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"dry_run": True, "out": str(tmp_path / "run")}
    planned = train(small_run(tmp_path, optim={"steps": 0, "samples": 50}, run=options, **mixed(tmp_path)))
    run = prepared(small_run(tmp_path / "again", optim={"steps": 0, "samples": 50}, **mixed(tmp_path)))
    assert planned["steps"] == run.total and f"plan: {run.total} steps" in capsys.readouterr().out


def test_less_than_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--flops 1e\+06 is less than a step costs: about \d") as caught:
        prepared(small_run(tmp_path / "run", optim={"steps": 0, "flops": 1e6}, **mixed(tmp_path)))
    cost = float(str(caught.value).rpartition(" ")[2])
    assert prepared(small_run(tmp_path / "run", optim={"steps": 0, "flops": 1.01 * cost}, **mixed(tmp_path))).total == 1


def test_what_cannot_be_counted_is_no_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Uncountable("the FLOPs of this model cannot be counted")

    monkeypatch.setattr(FlopMeter, "cost", refuse)
    with pytest.raises(Uncountable, match="cannot be counted; give --steps or --samples instead"):
        prepared(small_run(tmp_path / "run", optim={"steps": 0, "flops": FLOPS}))
    assert prepared(small_run(tmp_path / "run", optim={"steps": 0, "samples": 50})).total


def _plan(out: str, file: str, changes: dict[str, dict[str, Any]]) -> None:
    """Each process notes its steps."""
    run = prepared(small_run(Path(out), **changes))
    (Path(file) / str(run.processes.rank)).write_text(str(run.total))


def test_two_processes_count_as_one_does(tmp_path: Path) -> None:
    changes = mixed(tmp_path) | {"optim": {"steps": 0, "flops": FLOPS}}
    run_ranks(_plan, 2, str(tmp_path / "two"), str(tmp_path), changes)
    one = prepared(small_run(tmp_path / "one", **changes)).total
    assert [(tmp_path / rank).read_text() for rank in "01"] == [str(one)] * 2
