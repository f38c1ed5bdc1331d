"""Hugging Face vision models of every make, made and saved here."""

import json
import shutil
from math import isqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedModel

from beni.errors import ConfigError
from beni.model.config import spec_from_dict, spec_to_dict
from beni.nn.levels import Level, join
from beni.types import Grid
from beni_plugins.encoders.hf import HfEncoder, HfEncoderConfig
from tests.golden.reference import assert_numbers, det
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
    "dinov3_vit": (VIT | {"num_register_tokens": 4, "pos_embed_rescale": None}, Grid(4, 4), 5),
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
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(encoder.spec)))) == encoder.spec
    assert encoder.spec.grid(encoder.spec.size) == MODELS[family][1]
    assert encoder.spec.prefix == MODELS[family][2]
    assert (encoder.spec.mean, encoder.spec.std) == (MEAN, STD)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2_with_registers", "dinov3_vit"])
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


def level(state: Tensor, prefix: int) -> Level:
    side = isqrt(state.shape[1] - prefix)
    return Level(state) if state.ndim == 4 else Level.of_tokens(state, Grid(side, side))


@pytest.mark.parametrize("layers", [(-1, 1), (0,), (1,), ()])
def test_layers_side_by_side(published: tuple[str, Path, PreTrainedModel], layers: tuple[int, ...]) -> None:
    """What the whole model gives, from one without the blocks behind the last layer; coarser stages resized."""
    _, folder, model = published
    encoder = load(folder, layers=layers).eval()
    encoder.load_pretrained()
    pixels = crops(encoder.spec)
    vision = getattr(model, "vision_model", model)
    with torch.no_grad():
        features, last = encoder(pixels), vision(pixels).last_hidden_state
    whole = states(model, pixels)
    chosen = [whole[layer] for layer in layers] or [last]
    expected = join([level(state, encoder.spec.prefix) for state in chosen])
    assert torch.equal(features.tokens_ND, expected.tokens_ND)
    assert encoder.spec.width == features.tokens_ND.shape[1]
    alike = len({level(state, encoder.spec.prefix).map_CDRS.shape[1] for state in chosen}) == 1
    assert encoder.spec.levels == (len(chosen) if alike else 1)
    assert_keeps_promises(encoder)


@pytest.mark.parametrize("tied", [None, True])
@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model", "dinov2_with_registers", "vit"])
def test_blocks_behind_the_last_layer_are_not_built(family: str, tied: bool | None, tmp_path: Path) -> None:
    """Also where a model gives its last hidden state behind the norm, which a cut one must not do."""
    model = publish(tmp_path, family)
    table = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(table | {"tie_last_hidden_states": tied}))
    for layers, built in (((1,), 1), ((-2,), 2), ((-1,), 3), ((0, 2), 2), ((), 3)):
        encoder = load(tmp_path, layers=layers).eval()
        assert len(encoder.blocks()) == built
    encoder = load(tmp_path, layers=(1,)).eval()
    encoder.load_pretrained()
    pixels = crops(encoder.spec)
    with torch.no_grad():
        tokens = encoder(pixels).tokens_ND
    assert torch.equal(tokens, states(model, pixels)[1][:, encoder.spec.prefix :].flatten(0, 1))


def test_published_positions_at_another_size(published: tuple[str, Path, PreTrainedModel]) -> None:
    """As the library interpolates them in its own forward pass, or as it takes any size."""
    _, folder, model = published
    encoder = load(folder, size=96).eval()
    encoder.load_pretrained()
    assert encoder.spec.size == (96, 96)
    pixels = crops(encoder.spec)
    vision: Any = getattr(model, "vision_model", model)
    extra = {"interpolate_pos_encoding": True} if encoder.plan.interpolate else {}
    with torch.no_grad():
        state = vision(pixels, output_hidden_states=True, **extra).hidden_states[-2]
        tokens = encoder(pixels).tokens_ND
    state = state.permute(0, 2, 3, 1).flatten(1, 2) if state.ndim == 4 else state[:, encoder.spec.prefix :]
    assert torch.equal(tokens, state.flatten(0, 1))
    assert_keeps_promises(encoder)


def test_clips_interpolation_is_the_documented_one(tmp_path: Path) -> None:
    """Bicubic without antialias, CLS kept; golden numbers of a 4×4 table at 6×6."""
    narrow = {"vision_config": VIT | {"hidden_size": 3, "num_attention_heads": 1}, "text_config": TEXT}
    model = AutoModel.from_config(AutoConfig.for_model("clip", **narrow, projection_dim=16))
    model.vision_model.embeddings.position_embedding.weight.data = det((17, 3), 80).float()
    publish(tmp_path, "clip")
    model.save_pretrained(tmp_path)
    encoder = load(tmp_path, size=48)
    encoder.load_pretrained()
    table = encoder.model.embeddings.interpolate_pos_encoding(torch.zeros(1, 37, 3), 48, 48)  # type: ignore[union-attr,operator]
    cls, grid = det((17, 3), 80)[0], table[0, 1:].detach().double()
    total, absolute = -0.7961207401 - float(cls.sum()), 28.8250023222 - float(cls.abs().sum())
    first = [-0.4360636628, *grid.flatten()[1:4].tolist()]
    assert_numbers(grid, total, absolute, first, [0.1908655140, 0.5413072618], rtol=1e-5)
    assert torch.equal(table[0, 0], cls.float())


def test_a_size_that_the_model_cannot_take(tmp_path: Path) -> None:
    """AIMv2 has positions of one grid and no way to interpolate them."""
    model = AutoModel.from_config(AutoConfig.for_model("aimv2_vision_model", **VIT))
    model.save_pretrained(tmp_path)
    images = {"size": {"height": SIDE, "width": SIDE}, "image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    with pytest.raises(
        ConfigError, match=r"does not take images of 64 pixels, only of 32: leave --encoder.size"
    ) as error:
        HfEncoder.describe(HfEncoderConfig(model=str(tmp_path), size=64))
    assert "\n" not in str(error.value)


def test_weights_of_a_file_and_of_another_folder(tmp_path: Path) -> None:
    """Of a whole model behind any prefix, of a training checkpoint, or of another folder of the same architecture."""
    model = publish(tmp_path / "a", "clip")
    (tmp_path / "b").mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        shutil.copy(tmp_path / "a" / file, tmp_path / "b")
    torch.save({"state_dict": {f"net.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "weights.pt")
    for weights in (tmp_path / "weights.pt", tmp_path / "a"):
        encoder = load(tmp_path / "b", weights=str(weights)).eval()
        provenance = encoder.load_pretrained()
        assert provenance is not None and provenance.origin == str(weights)
        with torch.no_grad():
            pixels = crops(encoder.spec)
            assert torch.equal(encoder(pixels).tokens_ND, states(model, pixels)[-2][:, 1:].flatten(0, 1))
    publish(tmp_path / "c", "vit")
    with pytest.raises(ConfigError, match=r"weights of 'hf:.*c' do not fit '.*b': first "):
        load(tmp_path / "b", weights=str(tmp_path / "c")).load_pretrained()
    with pytest.raises(ConfigError, match="not a file"):
        load(tmp_path / "b", weights="hubb").load_pretrained()


def test_weights_are_not_rounded_to_what_they_were_published_in(tmp_path: Path) -> None:
    """A configuration that says fp16: what is trained is fp32, as of every part."""
    publish(tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    built = make("inline", encoders={"main": {"name": "hf", "model": str(tmp_path)}})
    published = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    own = built.model.encoders["main"].model.state_dict()  # type: ignore[union-attr]
    assert own.keys() < published.keys() or own.keys() == published.keys()
    for name, value in own.items():
        assert value.dtype == torch.float32 and torch.equal(value, published[name])
