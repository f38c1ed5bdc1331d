"""Every recipe: what it asks for exists and goes together, and all its stages train on small parts.

Only encoders, the language model, the data and the sizes of a step are exchanged for small ones; connector, fusion,
view, template, optimizer, adapters and the order of the stages are the recipe's.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from beni.cli.options import parse_stages
from beni.cli.stages import split
from beni.config import read_config_file, run_config_from_dict
from beni.interfaces import load
from beni.model.build import check_pair, describe, view_of
from beni.training.stages import train_stages
from beni.types import EncoderSpec
from tests.training.small import ENCODER, SHAPES, text_file

RECIPES = sorted((Path(__file__).parents[2] / "experiments" / "recipes").glob("*.toml"))
TRAINED = {
    "llava_1_5": [{"connector"}, {"connector", "llm"}],
    "llava_1_5_lora": [{"connector"}, {"connector", "llm.adapter"}],
    "minigpt_v2": [{"connector", "llm.adapter"}],
    "idefics2": [{"connector", "llm.adapter", "encoder.main.adapter"}] * 2,
    "flamingo": [{"connector", "fusion", "new_tokens"}],
    "cambrian_1": [{"connector", "fusion", "new_tokens"}, {"connector", "fusion", "new_tokens", "llm"}],
    "tiny_shakespeare": [{"llm"}],
    "tiny_shakespeare_0_5b": [{"llm"}],
    "dragonfly": [{"connector", "new_tokens"}, {"connector", "new_tokens", "llm", "encoder.main"}],
}
"""What each stage trains, as published."""


def test_all_recipes_are_known() -> None:
    assert {path.stem for path in RECIPES} == TRAINED.keys()


@cache
def spec_of(encoder: str) -> EncoderSpec:
    return describe({"main": run_config_from_dict({"encoders": {"main": json.loads(encoder)}}).encoders["main"]})[
        "main"
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_parts_exist_and_go_together(path: Path) -> None:
    """Published sizes, on the meta device."""
    for config in parse_stages(["--config", str(path)], "run.py").stages.values():
        tables = {key: part.to_dict() for key, part in config.encoders.items()}
        specs = {key: spec_of(json.dumps(table)) for key, table in tables.items()}
        load("connector", config.connector).check(config.connector.config, view_of(config.view), specs)  # type: ignore[attr-defined]
        check_pair(config.connector, config.fusion, specs)
        assert config.run.checkpoint_every and config.llm.plugin.name == (
            "tiny" if on_text_alone(config.data.data) else "hf"
        )


def test_the_published_size_of_half_a_billion() -> None:
    [config] = parse_stages(["--config", str(RECIPES[0].with_stem("tiny_shakespeare_0_5b"))], "run.py").stages.values()
    provider = load("llm", config.llm)(config.llm.config)  # type: ignore[call-arg]
    with torch.device("meta"):
        model, _ = provider.build(provider.tokenizer(["to be or not"]))  # type: ignore[attr-defined]
    assert 0.45e9 < sum(p.numel() for p in model.parameters()) < 0.55e9


LONG = {"cambrian_1"}
"""Recipes of several encoders."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in LONG else []) for path in RECIPES],
    ids=lambda path: path.stem,
)
def test_its_stages_train(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = text_file(tmp_path), tmp_path / "words.txt"
    words.write_text("to be or not to be\n" * 200)
    stages = split(read_config_file(path), str(path))
    small = {name: run_config_from_dict(shrunk(tables, text, words)) for name, tables in stages.items()}
    train_stages(small, tmp_path / "out")
    shown = iter(capsys.readouterr().out.split("part  ")[1:])
    for name, expected in zip(small, TRAINED[path.stem], strict=True):
        rows = [line.split() for line in next(shown).splitlines()[1:]]
        assert {row[0] for row in rows if len(row) > 2 and row[2] == "yes"} == expected, f"stage {name}"
        assert (tmp_path / "out" / name / "model" / "config.json").is_file()


def on_text_alone(specs: Sequence[str]) -> bool:
    return all(spec.startswith("text:") for spec in specs)


def shrunk(tables: dict[str, Any], text: str, words: Path) -> dict[str, Any]:
    """A stage's tables with small encoders, a small language model, and two sources of a few samples."""
    weights = [0.5, 0.5] if tables["data"].get("weights") else []
    data = [f"text:{words}?{spec.partition('?')[2]}" for spec in tables["data"]["data"]]
    if not on_text_alone(tables["data"]["data"]):
        data = [SHAPES, text]
    changes: dict[str, Any] = {
        "encoders": dict.fromkeys(tables["encoders"], ENCODER),
        "llm": {"name": "tiny", "width": 32, "layers": 4, "heads": 2, "ff_width": 48},
        "data": tables["data"] | {"data": data, "weights": weights, "eval_limit": 4, "workers": 0},
        "batch": tables["batch"] | {"rows": 1, "row_tokens": 4096, "row_images": 1},
        "optim": tables["optim"] | {"steps": 2},
        "run": tables["run"] | {"device": "cpu", "eval_every": 2},
    }
    return tables | changes
