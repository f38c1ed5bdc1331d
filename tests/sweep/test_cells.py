"""Cells: what makes two runs the same, and where each is kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from beni.sweep.cells import grid, identity, placed
from tests.sweep.runs import cell


def test_a_run_is_the_same_wherever_it_is_kept_and_whatever_its_seed() -> None:
    config = cell().config
    moved = replace(config, run=replace(config.run, out="elsewhere", seed=7, log_every=1))
    moved = replace(moved, data=replace(moved.data, workers=4))
    assert identity(moved) == identity(config)


@pytest.mark.parametrize(
    ("table", "option", "value"),
    [
        ("optim", "lr", 1.0),
        ("data", "eval_limit", 7),
        ("data", "eval_data", ("easy_vqa",)),
        ("run", "dtype", "bf16"),
        ("run", "feature_cache", "there"),
        ("run", "select", "best"),
        ("batch", "rows", 2),
    ],
)
def test_and_another_one_if_it_would_give_other_figures(table: str, option: str, value: object) -> None:
    config = cell().config
    changed = replace(config, **{table: replace(getattr(config, table), **{option: value})})
    assert identity(changed) != identity(config)


def test_combinations_that_differ_in_the_seed_are_one_cell() -> None:
    asked = [
        ({"connector": name, "seed": str(seed)}, cell(name).at(seed))
        for name in ("mlp", "perceiver")
        for seed in (3, 1)
    ]
    cells, seeds = grid(asked)
    assert [each.varied for each in cells] == [{"connector": "mlp"}, {"connector": "perceiver"}] and seeds == [3, 1]
    assert cells[0].at(5, lr=1e-2).run.seed == 5 and cells[0].at(5, lr=1e-2).optim.lr == 1e-2


def test_each_run_has_its_own_folder_and_goes_on_in_it() -> None:
    found = {
        placed(cell(name, lr).at(seed), Path("s")).run.out
        for name in ("mlp", "perceiver")
        for lr in (1e-3, 1e-4)
        for seed in (0, 1)
    }
    assert len(found) == 8
    one = placed(cell("perceiver").at(1), Path("s"))
    assert one.run.out.startswith("s/runs/perceiver-inline-") and one.run.out.endswith("/seed-1")
    assert one.run.resume == "auto" and placed(one, Path("s")) == one


def test_names() -> None:
    assert cell(varied={"connector": "mlp", "connector.num-latents": "4"}).name == "mlp × connector.num-latents 4"
    assert cell(varied={"fusion": "xattn", "encoder": "a + b"}).name == "xattn × a + b"
    assert replace(cell(), varied={}).name == "mlp × inline"
