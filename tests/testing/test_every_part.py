"""Every installed encoder, connector, fusion and view keeps what its kind promises.

Parts are found as users find them, by entry point: a new one is checked without being named here. Checks that start
processes run for one part by default, and for all of them with `-m slow`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, ViTConfig

from beni.registry import available
from beni.testing import SUITES, Conformance, checks, run, suite_for

KINDS = ("encoder", "connector", "fusion", "view")
REPRESENTATIVE = "fusion xattn"
"""Whose checks with several processes are run by default: it works inside the LLM, on which most depends."""


def local_vit(folder: Path) -> dict[str, Any]:
    """A Vision Transformer as the hub has them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    AutoModel.from_config(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(folder)
    images = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return {"model": str(folder)}


def local_clip(folder: Path) -> dict[str, Any]:
    """A CLIP as the hub has open_clip's; without weights."""
    vision = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
    table = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": table, "preprocess_cfg": {}}))
    return {"model": str(folder), "weights": "none"}


OPTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "encoder timm": lambda folder: {"model": "test_vit", "weights": "none", "size": 32},
    "encoder hf": local_vit,
    "encoder open_clip": local_clip,
    "encoder tiny": lambda folder: {"size": 32, "stem": [8, 16, 16], "width": 32},
}
"""Of parts that would have to be downloaded, or are large."""


def cases() -> Iterator[Any]:
    """A part and a check."""
    for kind in KINDS:
        for plugin in available(kind):
            part = f"{kind} {plugin.reference}"
            for check in checks(SUITES[kind]):
                spawns = getattr(getattr(SUITES[kind], check), "spawns", False)
                marks = [pytest.mark.slow] if spawns and part != REPRESENTATIVE else []
                yield pytest.param(part, check, id=f"{part} {check}".replace(" ", "-"), marks=marks)


@pytest.fixture(scope="module")
def suite_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], type[Conformance]]:
    """The suite of `KIND NAME`, made once, so that its checks share a model."""
    made: dict[str, type[Conformance]] = {}

    def get(part: str) -> type[Conformance]:
        if part not in made:
            kind, name = part.split(" ")
            options = OPTIONS[part](tmp_path_factory.mktemp(name)) if part in OPTIONS else {}
            made[part] = suite_for(kind, name, options)
        return made[part]

    return get


@pytest.mark.parametrize(("part", "check"), list(cases()))
def test_keeps_what_its_kind_promises(part: str, check: str, suite_of: Callable[[str], type[Conformance]]) -> None:
    outcome = run(suite_of(part), check)
    if outcome.status == "skipped":
        pytest.skip(outcome.reason)
    assert outcome.status == "ok", outcome.reason


def test_there_are_parts_of_every_kind() -> None:
    assert all(available(kind) for kind in KINDS)
    names = {f"{kind} {plugin.name}" for kind in KINDS for plugin in available(kind)}
    assert REPRESENTATIVE in names and OPTIONS.keys() <= names
