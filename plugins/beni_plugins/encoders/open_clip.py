"""Any open_clip image tower as an encoder: its ViTs, CLIP's ResNets, and towers whose trunk is a timm model.

open_clip has changed whether the tokens it returns have passed its last LayerNorm (they have since 2.23; the weights of
OpenFlamingo expect them not to), so here that is an option, and tokens are read from the blocks themselves.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import open_clip
import torch
from jaxtyping import Float
from open_clip.model import CLIPVisionCfg, _build_vision_tower, resize_pos_embed
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.utils import feature_take_indices
from torch import Tensor, nn

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import Provenance, VisionEncoder
from beni.nn.levels import Level, alike, cut, intermediates, join, norm_matters
from beni.nn.unused import drop_unused_children, unused_parameters, with_zero_gradients
from beni.types import EncoderSpec, Features, Size
from beni.weights import find_weights, sha256, take_weights


@dataclass(frozen=True, slots=True)
class OpenClipConfig(PartConfig):
    argument: ClassVar[str] = "model"

    model: str = "ViT-B-32:laion2b_s34b_b79k"
    """NAME or NAME:TAG of a model and its published weights in open_clip; a Hugging Face id (owner/name); a folder."""
    weights: str = "hub"
    """hub: the published weights (a folder's own, for a folder); none: from scratch; a weight file of open_clip or its
    folder; or package:NAME."""
    size: int = 0
    """Side of the square input in pixels, position embeddings are resampled as open_clip does (bicubic with antialias);
    0: the model's own."""
    layers: tuple[int, ...] = (-1,)
    """Layers whose outputs are the features, joined by channel on the finest grid among them: blocks of a ViT, stages
    of a ResNet or ConvNeXt; 0 the first, -1 the last, -2 the last but one …"""
    post_norm: bool = False
    """Whether the tower's last LayerNorm is applied to those outputs."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("encoder 'open_clip', option 'layers' is empty: name at least one; -1 is the last")


class OpenClipEncoder(VisionEncoder):
    """Outputs of chosen layers; CLS is the prefix. The text tower, pooling and later layers are not built."""

    beni_api = 1
    Config = OpenClipConfig

    def __init__(self, config: Any, spec: EncoderSpec) -> None:
        super().__init__(config, spec)
        self.tower = _build(spec.architecture, config.size)
        self.layers = _cut(self.tower, config)
        self.unused = drop_unused_children(self.tower, spec.architecture["unused"])

    @classmethod
    def describe(cls, config: Any) -> EncoderSpec:
        table, images, _ = _read(config)
        vision = table["vision_cfg"] | {"patch_dropout": 0.0, "timm_model_pretrained": False, "output_tokens": False}
        architecture = {name: table.get(name, False) for name in ("embed_dim", "quick_gelu")} | {"vision_cfg": vision}
        try:
            with torch.device("meta"):
                whole = _build(architecture, config.size).eval().requires_grad_(True)
                tower = _build(architecture, config.size).eval()
            height, width = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size,) * 2
            height, width = (config.size or height), (config.size or width)
            pixels = torch.empty(1, 3, height, width, device="meta")
            layers = _cut(tower, config)
            tower.requires_grad_(True)
            if config.post_norm and not norm_matters(whole, lambda norm: join(_levels(whole, pixels, layers, norm))):
                raise ConfigError(
                    f"open_clip model '{config.model}' has no norm for layers {config.layers}: leave 'post_norm' off"
                )
            levels = _levels(tower, pixels, layers, config.post_norm)
            features = join(levels)
        except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"encoder 'open_clip:{config.model}' gives no layers {config.layers}"
                f"{' with post_norm' if config.post_norm else ''} of images of {config.size or 'its own'} pixels: "
                f"{str(error).splitlines()[0]}"
            ) from error
        grid = features.grids[0]
        patch = _patch(tower)
        stride = patch if patch and height // patch == grid.rows else round(height / grid.rows)
        return EncoderSpec(
            size=Size(width, height),
            stride=stride,
            width=features.tokens_ND.shape[1],
            mean=tuple(images["mean"]),
            std=tuple(images["std"]),
            prefix=0 if features.prefix_CPD is None else features.prefix_CPD.shape[1],
            resample=images["interpolation"] if images["interpolation"] in ("bilinear", "bicubic") else "bicubic",
            partial=height // stride != grid.rows,
            levels=alike(levels),
            architecture=architecture | {"unused": unused_parameters(tower, features.tokens_ND)},
        )

    def load_pretrained(self) -> Provenance | None:
        if self.config.weights == "none":
            return None
        if self.config.weights == "hub":
            table, _, source = _read(self.config)
            try:
                whole = open_clip.create_model(
                    **source, require_pretrained=True, force_quick_gelu=table.get("quick_gelu", False)
                )
            except Exception as error:
                raise ConfigError(
                    f"weights of open_clip:{self.config.model} cannot be fetched ({type(error).__name__}: {error}): "
                    f"connect to the hub, or set --encoder.weights to a file, to package:NAME, or to none for new ones"
                ) from error
            published, provenance = whole.visual, Provenance(self.config.model)
        else:
            path = find_weights(self.config.weights)
            published = _build(self.spec.architecture, 0)
            take_weights(published, path)
            provenance = Provenance(self.config.weights, sha256(path))
        if self.config.size and hasattr(published, "trunk"):
            published.set_input_size(self.config.size)
        state = {f"visual.{name}": value for name, value in published.state_dict().items()}
        resize_pos_embed(state, SimpleNamespace(visual=self.tower))  # only open_clip's own ViTs have a grid
        self.tower.load_state_dict({name: state[f"visual.{name}"] for name in self.tower.state_dict()})
        return provenance

    def forward(self, pixels_C3HW: Float[Tensor, "C 3 height width"]) -> Features:
        pixels_C3HW = pixels_C3HW.to(next(self.tower.parameters()).dtype)
        features = join(_levels(self.tower, pixels_C3HW, self.layers, self.config.post_norm))
        return replace(features, tokens_ND=with_zero_gradients(features.tokens_ND, self.tower, self.unused))

    def blocks(self) -> Sequence[nn.Module]:
        owner = getattr(self.tower, "trunk", None) or getattr(self.tower, "transformer", None)
        blocks = getattr(owner, "blocks", None) or getattr(owner, "resblocks", ())
        return list(blocks) if isinstance(blocks, (nn.Sequential, nn.ModuleList)) else ()


def _read(config: OpenClipConfig) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A model's configuration, how its images are prepared, and the arguments that make open_clip build it."""
    name = config.model.removeprefix("hf-hub:")
    if (name and Path(name).is_dir()) or "/" in name:
        try:
            local = Path(name).is_dir()
            file = "open_clip_config.json"
            path = Path(name) / file if local else Path(download_pretrained_from_hf(name, filename=file))
            table = json.loads(path.read_text(encoding="utf-8"))
            model, images = table["model_cfg"], table.get("preprocess_cfg", {})
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"encoder 'open_clip:{name}' cannot be read: {str(error).splitlines()[0]}") from error
        return model, _preparation(images), {"model_name": f"{'local-dir' if local else 'hf-hub'}:{name}"}
    name, _, tag = name.partition(":")
    known = open_clip.get_model_config(name)
    if known is None:
        close = get_close_matches(name, open_clip.list_models(), n=3)
        raise ConfigError(f"open_clip has no model '{name}'{': similar are ' + ', '.join(close) if close else ''}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    unknown = bool(tag) and not open_clip.is_pretrained_cfg(name, tag)
    if unknown or (not tag and config.weights == "hub" and len(tags) != 1):
        which = f", none called '{tag}'" if tag else ""
        advice = f"choose one, {', '.join(f'{name}:{tag}' for tag in tags)}" if tags else "set 'weights' to a file"
        raise ConfigError(f"open_clip has {len(tags)} published weights for '{name}'{which}: {advice}")
    tag = tag or (tags[0] if len(tags) == 1 else "")
    published = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    known["quick_gelu"] = known.get("quick_gelu", False) or published.get("quick_gelu", False)
    return known, _preparation(published), {"model_name": name, "pretrained": tag}


def _preparation(overrides: dict[str, Any]) -> dict[str, Any]:
    return merge_preprocess_dict(PreprocessCfg(), overrides)


def _build(architecture: Any, size: int) -> Any:
    """The image tower for an input of some size, or of its own; without its weights."""

    def build(**overrides: Any) -> Any:
        vision = CLIPVisionCfg(**architecture["vision_cfg"] | overrides)
        return _build_vision_tower(architecture["embed_dim"], vision, architecture["quick_gelu"])

    tower = build()
    if size and hasattr(tower, "trunk"):
        tower.set_input_size(size)
    return build(image_size=size) if size and hasattr(tower, "grid_size") else tower  # positions depend on it


def _cut(tower: Any, config: OpenClipConfig) -> list[int]:
    """Drop what is behind the last layer; a ResNet has no such function, its stages are children that stay unused."""
    if hasattr(tower, "trunk"):
        return cut(tower.trunk, config.layers, config.post_norm)
    if hasattr(tower, "prune_intermediate_layers"):
        return cut(tower, config.layers, config.post_norm)
    return feature_take_indices(5, list(config.layers))[0]  # the stem and four stages


def _levels(tower: Any, pixels_C3HW: Tensor, layers: Sequence[int], norm: bool) -> list[Level]:
    if hasattr(tower, "trunk"):
        return intermediates(tower.trunk, pixels_C3HW, layers, norm)
    wanted = sorted(set(layers))
    out = tower.forward_intermediates(
        pixels_C3HW,
        indices=wanted,
        normalize_intermediates=norm,
        intermediates_only=True,
        output_extra_tokens=True,
    )
    maps = out["image_intermediates"]
    prefixes = out.get("image_intermediates_prefix", [None] * len(maps))
    found = {layer: Level(*level) for layer, *level in zip(wanted, maps, prefixes, strict=True)}
    return [found[layer] for layer in layers]


def _patch(tower: nn.Module) -> int:
    """Side of a ViT's patch in pixels, of open_clip's own or a trunk of timm's; 0 for other towers."""
    for module in (tower, getattr(getattr(tower, "trunk", None), "patch_embed", None)):
        side = getattr(module, "patch_size", None)
        if side:
            return side if isinstance(side, int) else side[0]
    return 0
