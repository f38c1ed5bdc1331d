"""Hugging Face vision models of every make, made and saved here."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedModel

from beni.errors import ConfigError
from beni.types import Grid
from beni_plugins.encoders.hf import HfEncoder, HfEncoderConfig
from tests.model.small import CONVERSATIONS, inputs, make
from tests.plugins.encoders.contract import assert_keeps_promises, crops, text_of

SIDE = 32
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
    "initializer_range": 0.2,
}
DINO = {name: value for name, value in VIT.items() if name != "intermediate_size"}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
STAGES = {"hidden_sizes": [8, 12, 16, 32], "depths": [1, 1, 1, 1], "image_size": 64, "layer_scale_init_value": 1.0}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
SWIN["drop_path_rate"] = 0.0
MODELS: dict[str, tuple[dict[str, Any], Grid, int]] = {
    "clip": ({"vision_config": VIT, "text_config": TEXT, "projection_dim": 16}, Grid(4, 4), 1),
    "clip_vision_model": (VIT, Grid(4, 4), 1),
    "siglip": ({"vision_config": VIT, "text_config": TEXT}, Grid(4, 4), 0),
    "siglip_vision_model": (VIT, Grid(4, 4), 0),
    "dinov2": (DINO, Grid(4, 4), 1),
    "dinov2_with_registers": (DINO, Grid(4, 4), 5),
    "vit": (VIT, Grid(4, 4), 1),
    "convnext": (STAGES, Grid(2, 2), 0),
    "swin": (SWIN, Grid(4, 4), 0),
}
"""Options, grid of the last layer, prefix tokens."""
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def publish(folder: Path, family: str) -> PreTrainedModel:
    """A model as the hub has them: configuration, weights, and how images are prepared."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **MODELS[family][0])).eval()
    model.save_pretrained(folder)
    side = 64 if family == "convnext" else SIDE
    images = {"size": {"height": side, "width": side}, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return model


def load(folder: Path, **options: Any) -> HfEncoder:
    config = HfEncoderConfig(model=str(folder), **options)
    return HfEncoder(config, HfEncoder.describe(config))


@pytest.fixture(scope="module", params=MODELS)
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, publish(folder, request.param)


def states(model: PreTrainedModel, pixels: Tensor) -> tuple[Tensor, ...]:
    vision = getattr(model, "vision_model", model)
    with torch.no_grad():
        return vision(pixels, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("layer", [-1, -2])
def test_gives_the_published_hidden_states(published: tuple[str, Path, PreTrainedModel], layer: int) -> None:
    _, folder, model = published
    encoder = load(folder, layers=(layer,)).eval()
    provenance = encoder.load_pretrained()
    assert provenance is not None and provenance.origin == str(folder)
    pixels = crops(encoder.spec)
    expected = states(model, pixels)[layer]
    with torch.no_grad():
        features = encoder(pixels)
    if expected.ndim == 4:
        assert torch.equal(features.tokens_ND, expected.permute(0, 2, 3, 1).flatten(0, 2))
    else:
        prefix = encoder.spec.prefix
        assert torch.equal(features.tokens_ND, expected[:, prefix:].flatten(0, 1))
        assert prefix == 0 or torch.equal(features.prefix_CPD, expected[:, :prefix])  # type: ignore[arg-type]


def test_keeps_what_it_describes(published: tuple[str, Path, PreTrainedModel]) -> None:
    family, folder, _ = published
    for layer in (-1, -2):
        encoder = load(folder, layers=(layer,))
        encoder.load_pretrained()
        assert_keeps_promises(encoder)
    encoder = load(folder, layers=(-1,))
    assert encoder.spec.grid(encoder.spec.size) == MODELS[family][1]
    assert encoder.spec.prefix == MODELS[family][2]
    assert (encoder.spec.mean, encoder.spec.std) == (MEAN, STD)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2_with_registers"])
def test_reloads_where_the_source_cannot_be_reached(family: str, tmp_path: Path) -> None:
    """A saved model holds its encoder's architecture and weights, and does not say where they came from."""
    source = tmp_path / "somewhere" / "encoder"
    publish(source, family)
    built = make("inline", encoders={"main": {"name": "hf", "model": str(source)}})
    assert built.loaded["encoder.main"].origin == str(source)
    built.model.eval().save_pretrained(tmp_path / "model")
    shutil.rmtree(source)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    batch = inputs(built, CONVERSATIONS)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, built.model(**batch).logits)
    assert str(tmp_path) not in text_of(tmp_path / "model")


def test_from_scratch(tmp_path: Path) -> None:
    model = publish(tmp_path, "vit")
    encoder = load(tmp_path, weights="none")
    assert encoder.load_pretrained() is None
    assert not torch.equal(encoder.model.embeddings.cls_token, model.embeddings.cls_token)  # type: ignore[union-attr]


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    publish(tmp_path / "vit", "vit")
    (tmp_path / "empty").mkdir()
    mistakes = {
        "no-such-owner/no-such-model": "cannot be read",
        str(tmp_path / "empty"): "cannot be read",
    }
    for model, complaint in mistakes.items():
        with pytest.raises(ConfigError, match=complaint) as error:
            HfEncoder.describe(HfEncoderConfig(model=model))
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="has 4 hidden states: there is no layer 9"):
        HfEncoder.describe(HfEncoderConfig(model=str(tmp_path / "vit"), layers=(9,)))
    encoder = load(tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"weights of .* cannot be read"):
        encoder.load_pretrained()
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        HfEncoder.describe(HfEncoderConfig(model=str(tmp_path / "vit")))


def test_language_models_are_no_encoders(tmp_path: Path) -> None:
    make("inline").model.llm.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"llama.*is not a vision model"):
        HfEncoder.describe(HfEncoderConfig(model=str(tmp_path)))
