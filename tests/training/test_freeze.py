"""What is trained, and how fast: the table, and the optimizer's groups made of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from beni.errors import ConfigError
from beni.model.build import Built, build
from beni.training import freeze
from beni.training.run import train
from tests.training.small import ENCODER, XATTN, small_run


def table(tmp_path: Path, origins: dict[str, str] | None = None, **optim: Any) -> dict[str, freeze.FreezeRow]:
    config = small_run(tmp_path, optim=optim)
    return {row.part: row for row in freeze.freeze_table(build(config, ["a"]).model, config.optim, origins or {})}


def grouped(built: Built, rows: list[freeze.FreezeRow], optim: Any) -> dict[str, tuple[float, float]]:
    """Peak learning rate and decay of every trained parameter, by name."""
    names = {id(p): name for name, p in built.model.named_parameters()}
    groups = freeze.parameter_groups(built.model, rows, optim)
    return {names[id(p)]: (group["peak_lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_loaded_parts_are_frozen_unless_they_are_named(tmp_path: Path) -> None:
    origins = {"llm": "a folder", "encoder.main": "the hub"}
    rows = table(tmp_path, origins)
    assert {part for part, row in rows.items() if row.trainable} == {"connector"}
    rows = table(tmp_path, origins, train=["llm"], lr=1e-3, lr_pretrained=1e-5)
    assert {part: row.lr for part, row in rows.items() if row.trainable} == {"llm": 1e-5}


def test_rates_and_decay_of_a_part(tmp_path: Path) -> None:
    rows = table(tmp_path, part_lr={"connector": 1e-2, "encoder": 3e-5}, part_weight_decay={"llm": 0.5}, lr=1e-3)
    assert {part: row.lr for part, row in rows.items()} == {"encoder.main": 3e-5, "connector": 1e-2, "llm": 1e-3}
    assert {part: row.weight_decay for part, row in rows.items()} == {
        "encoder.main": 0.05,
        "connector": 0.05,
        "llm": 0.5,
    }


def test_what_is_said_of_one_encoder_beats_what_is_said_of_all(tmp_path: Path) -> None:
    for given in ({"encoder": 1.0, "encoder.main": 2.0}, {"encoder.main": 2.0, "encoder": 1.0}):
        assert table(tmp_path, part_lr=given)["encoder.main"].lr == 2.0


@pytest.mark.parametrize("option", ["part_lr", "part_weight_decay"])
def test_rates_of_nothing_are_refused(tmp_path: Path, option: str) -> None:
    flag = "--" + option.replace("_", "-")
    with pytest.raises(ConfigError, match=rf"{flag} conector: .* did you mean connector"):
        table(tmp_path, **{option: {"conector": 1e-3}})
    with pytest.raises(ConfigError, match=rf"{flag} llm: llm is frozen"):
        table(tmp_path, {"llm": "a folder"}, **{option: {"llm": 1e-3}})
    with pytest.raises(ConfigError, match=rf"'{option}' gives llm -1"):
        table(tmp_path, **{option: {"llm": -1.0}})


def test_the_first_layers_of_a_part_stay_as_they_are(tmp_path: Path) -> None:
    optim: dict[str, Any] = {"freeze_layers": {"llm": 2}, "steps": 2}
    train(small_run(tmp_path / "start", llm={"layers": 3}, optim=optim | {"lr": 0.0}))  # the same first weights
    result = train(small_run(tmp_path / "run", llm={"layers": 3}, optim=optim))
    before, after = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name / "model").llm.state_dict()
        for name in ("start", "run")
    )
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    frozen = {name for name in after if ".layers.0." in name or ".layers.1." in name}
    assert frozen and moved == after.keys() - frozen
    total = sum(after[name].numel() for name in frozen)
    assert result["parameters"]["total"] - result["parameters"]["trainable"] == total


def test_the_table_says_how_many_layers_are_frozen(tmp_path: Path) -> None:
    config = small_run(tmp_path, encoders={"main": ENCODER | {"layers": 2}}, optim={"freeze_layers": {"encoder": 1}})
    rows = freeze.freeze_table(build(config, ["a"]).model, config.optim, {})
    assert [row.frozen_layers for row in rows] == [1, 0, 0]
    assert "behind 1" in freeze.show(rows).splitlines()[1]


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        ({"llm": 3}, r"--freeze-layers llm 3: it has 2 layers"),
        ({"connector": 1}, r"--freeze-layers connector 1: it has no layers"),
        ({"lm": 1}, r"--freeze-layers lm: .* did you mean llm"),
        ({"llm": -1}, r"'freeze_layers' gives llm -1"),
    ],
)
def test_layers_that_are_not_there(tmp_path: Path, frozen: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table(tmp_path, freeze_layers=frozen)


def test_only_weight_matrices_decay_and_gates_are_faster(tmp_path: Path) -> None:
    config = small_run(tmp_path, optim={"part_lr": {"fusion": 1e-2}, "part_weight_decay": {"fusion": 0.3}}, **XATTN)
    built = build(config, ["a"])
    rows = freeze.freeze_table(built.model, config.optim, {})
    found = grouped(built, rows, config.optim)
    assert found.keys() == {name for name, _ in built.model.named_parameters()}
    block = "fusion.layers.0"
    assert found[f"{block}.to_q.weight"] == (1e-2, 0.3)
    assert found[f"{block}.norm.weight"] == (1e-2, 0.0)
    assert found[f"{block}.attn_gate"] == (1e-2 * config.optim.gate_speed, 0.0)
    latents = [name for name, p in built.model.connector.named_parameters() if "latents" in name]
    assert latents and all(found[f"connector.{name}"] == (1e-3, 0.0) for name in latents)
    embeddings = {f"{name}.weight" for name, m in built.model.named_modules() if isinstance(m, nn.Embedding)}
    assert all(found[name][1] == 0.0 for name in embeddings & found.keys())
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert all(built.model.get_parameter(name).ndim > 1 for name in decayed)
