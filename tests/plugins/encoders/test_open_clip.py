"""open_clip's towers of every make, from configurations of a few thousand parameters, saved as open_clip saves them."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from beni.types import Grid
from beni_plugins.encoders.open_clip import OpenClipConfig, OpenClipEncoder
from tests.plugins.encoders.contract import assert_keeps_promises, crops

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
        widths = {load(folder, layers=(layer,)).spec.width for layer in layers}
        assert encoder.spec.levels == (len(layers) if len(widths) == 1 else 1)
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


def test_the_stride_is_the_patch(tmp_path: Path) -> None:
    """Of an input that no whole number of patches covers, too: an advice about sizes counts in strides."""
    publish(tmp_path, "vit")
    config = OpenClipConfig(model=str(tmp_path), size=3 * VIT["patch_size"] + 5, weights="none")
    spec = OpenClipEncoder.describe(config)
    assert (spec.stride, spec.grid(spec.size)) == (VIT["patch_size"], Grid(3, 3))
