"""open_clip's towers of every make, from configurations of a few thousand parameters, saved as open_clip saves them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.factory import load_checkpoint
from torch import Tensor
from transformers import AutoModelForImageTextToText

from beni.errors import ConfigError
from beni.types import Grid
from beni_plugins.encoders.open_clip import OpenClipConfig, OpenClipEncoder
from tests.golden.reference import assert_numbers, det
from tests.model.small import CONVERSATIONS, inputs, make
from tests.plugins.encoders.contract import assert_keeps_promises, crops, text_of

TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
VIT: dict[str, Any] = {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
TOWERS: dict[str, tuple[dict[str, Any], Grid, int, int]] = {
    "vit": (VIT, Grid(4, 4), 32, 1),
    "dropping": (VIT | {"patch_dropout": 0.5}, Grid(4, 4), 32, 1),
    "fixed": (VIT | {"pos_embed_type": "sin_cos_2d"}, Grid(4, 4), 32, 1),
    "pooling": (VIT | {"attentional_pool": True, "attn_pooler_heads": 2}, Grid(4, 4), 32, 1),
    "resnet": (RESNET, Grid(2, 2), 256, 0),
    "trunk": ({"image_size": 160, "timm_model_name": "test_vit"}, Grid(10, 10), 64, 1),
    "rotary": ({"image_size": 224, "timm_model_name": "eva02_tiny_patch14_224"}, Grid(16, 16), 192, 1),
    "stages": ({"image_size": 64, "timm_model_name": "test_convnext"}, Grid(2, 2), 64, 0),
}
"""Vision configuration, grid, channels and prefix tokens of the last layer."""
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def publish(folder: Path, kind: str) -> torch.nn.Module:
    """A model as the hub has open_clip's: configuration, weights of both towers, and how images are prepared."""
    table = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": TOWERS[kind][0], "text_cfg": TEXT}
    images = {"mean": MEAN, "std": STD, "interpolation": "bilinear"}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": table, "preprocess_cfg": images}))
    torch.manual_seed(0)
    model = open_clip.CLIP(**{**table, "vision_cfg": dict(TOWERS[kind][0])})  # type: ignore[arg-type]
    for norm in model.visual.modules():
        if isinstance(norm, torch.nn.BatchNorm2d | torch.nn.LayerNorm) and norm.weight is not None:
            torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model.eval()


def load(folder: Path | str, **options: Any) -> OpenClipEncoder:
    config = OpenClipConfig(model=str(folder), **options)
    torch.manual_seed(1)
    encoder = OpenClipEncoder(config, OpenClipEncoder.describe(config))
    encoder.load_pretrained()
    return encoder.eval()


@pytest.fixture(scope="module", params=TOWERS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, publish(folder, request.param)


def outputs(visual: Any, pixels: Tensor, norm: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """Maps and prefixes of all layers of the whole tower, by the library."""
    extra = {"output_extra_tokens": True} if getattr(getattr(visual, "trunk", visual), "num_prefix_tokens", 0) else {}
    with torch.no_grad():
        found = visual.forward_intermediates(pixels, normalize_intermediates=norm, intermediates_only=True, **extra)
    return found["image_intermediates"], found.get("image_intermediates_prefix", [])


def rows(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def test_keeps_what_it_describes(published: tuple[str, Path, Any]) -> None:
    kind, folder, _ = published
    _, grid, width, prefix = TOWERS[kind]
    for layers in ((-1,), (-2,), (0, -1)):
        encoder = load(folder, layers=layers)
        encoder.requires_grad_(True)  # as whoever trains it does, of positions that open_clip keeps fixed, too
        assert_keeps_promises(encoder)
    spec = load(folder).spec
    assert (spec.grid(spec.size), spec.width, spec.prefix) == (grid, width, prefix)
    assert (spec.mean, spec.std, spec.resample) == (MEAN, STD, "bilinear")


@pytest.mark.parametrize("layer", [0, -2, -1])
def test_a_cut_tower_gives_the_whole_ones_outputs(published: tuple[str, Path, Any], layer: int) -> None:
    _, folder, model = published
    encoder = load(folder, layers=(layer,))
    pixels = crops(encoder.spec)
    maps, _ = outputs(model.visual, pixels)
    with torch.no_grad():
        assert torch.equal(encoder(pixels).tokens_ND, rows(maps[layer]))
    own, whole = (sum(p.numel() for p in m.parameters()) for m in (encoder, model.visual))
    assert own < whole


@pytest.mark.parametrize("kind", ["vit", "trunk"])
@pytest.mark.parametrize("norm", [False, True])
def test_layers_side_by_side(kind: str, norm: bool, tmp_path: Path) -> None:
    """In the order given, each with the last LayerNorm or without it, CLS in front."""
    model = publish(tmp_path, kind)
    encoder = load(tmp_path, layers=(-1, 0), post_norm=norm)
    pixels = crops(encoder.spec)
    maps, _ = outputs(model.visual, pixels, norm)
    with torch.no_grad():
        features = encoder(pixels)
    assert torch.equal(features.tokens_ND, torch.cat([rows(maps[-1]), rows(maps[0])], dim=1))
    assert features.prefix_CPD is not None and features.prefix_CPD.shape == (2, 1, 2 * TOWERS[kind][2])
    other = load(tmp_path, layers=(-1, 0), post_norm=not norm)
    assert not torch.allclose(other(pixels).tokens_ND, features.tokens_ND, atol=1e-2)


def test_post_norm_is_what_the_library_calls_tokens(tmp_path: Path) -> None:
    """Since 2.23 `output_tokens` has passed the norm; up to 2.20 it had not: the last block's output."""
    model = publish(tmp_path, "vit")
    model.visual.output_tokens = True
    encoder, norming = load(tmp_path), load(tmp_path, post_norm=True)
    pixels = crops(encoder.spec)
    with torch.no_grad():
        plain, normed = encoder(pixels).tokens_ND, norming(pixels).tokens_ND
        torch.testing.assert_close(normed, model.visual(pixels)[1].flatten(0, 1))
        torch.testing.assert_close(model.visual.ln_post(plain), normed)


def test_positions_at_another_size(tmp_path: Path) -> None:
    """open_clip's bicubic with antialias; golden numbers of a 4×4 table at 6×6."""
    kind = {"embed_dim": 3, "vision_cfg": VIT | {"width": 3, "head_width": 3}, "text_cfg": TEXT}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": kind}))
    model = open_clip.CLIP(3, dict(kind["vision_cfg"]), dict(TEXT))  # type: ignore[call-overload]
    model.visual.positional_embedding.data = det((17, 3), 80).float()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    encoder = load(tmp_path, size=48, weights=str(tmp_path / "weights.pt"))
    table = encoder.tower.positional_embedding.detach().double()
    cls, grid = table[:1], table[1:]
    torch.testing.assert_close(cls, det((17, 3), 80)[:1], rtol=1e-6, atol=1e-7)
    total, absolute = -0.7325435792 - float(cls.sum()), 26.4587930092 - float(cls.abs().sum())
    first = [-0.3981641617, *grid.flatten()[1:4].tolist()]
    assert_numbers(grid, total, absolute, first, [0.1631758976, 0.5007957222], rtol=1e-5)


@pytest.mark.parametrize(("kind", "size"), [("vit", 64), ("resnet", 96), ("trunk", 64), ("stages", 96)])
def test_another_size_is_the_librarys(kind: str, size: int, tmp_path: Path) -> None:
    publish(tmp_path, kind)
    encoder = load(tmp_path, size=size, layers=(-2,))
    assert encoder.spec.size == (size, size)
    assert_keeps_promises(encoder)
    table = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    if kind == "vit":
        table["vision_cfg"]["image_size"] = size
    whole = open_clip.CLIP(**table).eval()
    source = publish(tmp_path / "again", kind)
    if kind == "vit":
        load_checkpoint(whole, str(tmp_path / "open_clip_pytorch_model.bin"))
    else:
        whole = source
    if kind == "trunk":
        whole.visual.set_input_size(size)
    pixels = crops(encoder.spec)
    with torch.no_grad():
        assert torch.equal(encoder(pixels).tokens_ND, rows(outputs(whole.visual, pixels)[0][-2]))


@pytest.mark.parametrize("kind", ["vit", "resnet", "trunk", "rotary"])
def test_reloads_where_the_source_cannot_be_reached(kind: str, tmp_path: Path) -> None:
    """A saved model holds its tower's architecture and weights, and does not say where they came from."""
    source = tmp_path / "somewhere" / "tower"
    publish(source, kind)
    table = {"name": "open_clip", "model": str(source), "layers": [-2, -1], "size": 28 if kind == "rotary" else 0}
    built = make("inline", encoders={"main": table})
    assert built.loaded["encoder.main"].origin == str(source)
    built.model.eval().save_pretrained(tmp_path / "model")
    shutil.rmtree(source)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    batch = inputs(built, CONVERSATIONS)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, built.model(**batch).logits)
    assert str(tmp_path) not in text_of(tmp_path / "model")


def test_weights_of_a_file_and_from_scratch(tmp_path: Path) -> None:
    model = publish(tmp_path, "vit")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "a.pt")
    encoder = load(tmp_path, weights=str(tmp_path / "a.pt"))
    assert torch.equal(encoder.tower.conv1.weight, model.visual.conv1.weight)
    assert not torch.equal(load(tmp_path, weights="none").tower.conv1.weight, model.visual.conv1.weight)
    (tmp_path / "broken").mkdir()
    torch.save({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "broken" / "b.bin")
    with pytest.raises(ConfigError, match="do not fit"):
        load(tmp_path, weights=str(tmp_path / "broken"))


def test_published_models_are_described_as_published() -> None:
    """Normalisation and activation are those the weights were trained with; nothing is fetched."""
    openai = OpenClipEncoder.describe(OpenClipConfig(model="ViT-B-32:openai"))
    assert openai.architecture["quick_gelu"] and (openai.stride, openai.width, openai.prefix) == (32, 768, 1)
    assert openai.mean == open_clip.OPENAI_DATASET_MEAN and openai.std == open_clip.OPENAI_DATASET_STD
    assert not OpenClipEncoder.describe(OpenClipConfig()).architecture["quick_gelu"]
    siglip = OpenClipEncoder.describe(OpenClipConfig(model="ViT-B-16-SigLIP"))
    assert (siglip.mean, siglip.prefix, siglip.grid(siglip.size)) == ((0.5, 0.5, 0.5), 0, Grid(14, 14))


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    publish(tmp_path / "vit", "vit")
    publish(tmp_path / "pooling", "pooling")
    publish(tmp_path / "resnet", "resnet")
    vit, none = str(tmp_path / "vit"), {"weights": "none"}
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"model": "ViT-B-23"}, "no model 'ViT-B-23': similar are ViT-B-32"),
        ({"model": "ViT-B-32"}, "published weights for 'ViT-B-32': choose one, ViT-B-32:openai"),
        ({"model": "ViT-B-32:laion"}, "none called 'laion': choose one"),
        ({"model": "ViT-M-16"}, "0 published weights for 'ViT-M-16': set 'weights'"),
        ({"model": "no-such-owner/no-such-model"}, "cannot be read"),
        ({"model": vit, "layers": (3,)}, r"gives no layers \(3,\)"),
        ({"model": str(tmp_path / "pooling"), "post_norm": True} | none, "with post_norm"),
        ({"model": str(tmp_path / "resnet"), "post_norm": True} | none, "no norm for layers"),
    ]
    for options, complaint in mistakes:
        with pytest.raises(ConfigError, match=complaint) as error:
            OpenClipEncoder.describe(OpenClipConfig(**options))
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="'layers' is empty"):
        OpenClipConfig(layers=())
    encoder = OpenClipEncoder(config := OpenClipConfig(model=vit), OpenClipEncoder.describe(config))
    (tmp_path / "vit" / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"weights of open_clip:.*vit cannot be fetched"):
        encoder.load_pretrained()


def test_beni_does_not_import_it() -> None:
    code = "import sys, beni; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
