"""Any timm image model as an encoder: ViTs with or without CLS and registers, and convolutional feature maps.

The features are the model's final ones, or the outputs of chosen layers side by side: blocks of a ViT (LLaVA takes the
last but one of CLIP's), stages of a feature pyramid (Cambrian-1 takes all four of a ConvNeXt).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, ClassVar

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import Provenance, VisionEncoder
from beni.nn.levels import Level, alike, cut, intermediates, join, norm_matters
from beni.nn.unused import unused_parameters, with_zero_gradients
from beni.types import EncoderSpec, Features, Grid, Size
from beni.weights import find_weights, load_weights, sha256


@dataclass(frozen=True, slots=True)
class TimmConfig(PartConfig):
    argument: ClassVar[str] = "model"

    model: str = "vit_small_patch16_224"
    """Name of the model in timm."""
    weights: str = "hub"
    """hub: timm's published weights; none: from scratch; a weight file or its folder; or package:NAME."""
    size: int = 0
    """Side of the square input in pixels, position embeddings are resampled as timm does; 0: the model's own."""
    layers: tuple[int, ...] = ()
    """Layers whose outputs are the features, joined by channel on the finest grid among them: blocks of a ViT, stages
    of a feature pyramid; 0 the first, -1 the last, -2 the last but one …; empty: the model's final features."""
    norm: bool = False
    """Whether the model's final norm is applied to the chosen layers; the final features always have it."""

    def __post_init__(self) -> None:
        if self.norm and not self.layers:
            raise ConfigError("encoder 'timm', option 'norm': the final features are normed; it is for chosen 'layers'")


class TimmEncoder(VisionEncoder):
    """Patch tokens, or feature maps read row by row; nothing behind the last chosen layer is built."""

    beni_api = 1
    Config = TimmConfig

    def __init__(self, config: Any, spec: EncoderSpec) -> None:
        super().__init__(config, spec)
        self.model: Any = _create(config)
        if config.layers:
            cut(self.model, config.layers, config.norm)

    @classmethod
    def describe(cls, config: Any) -> EncoderSpec:
        with torch.device("meta"):
            model, whole = _create(config).eval(), _create(config).eval().requires_grad_(True)
        data = timm.data.resolve_model_data_config(model)
        side = config.size or data["input_size"][-1]
        pixels = torch.empty(1, 3, side, side, device="meta")
        try:
            layers = cut(model, config.layers, config.norm) if config.layers else []
            model.requires_grad_(True)
            if config.norm and not norm_matters(whole, lambda norm: join(intermediates(whole, pixels, layers, norm))):
                raise ConfigError(
                    f"timm model '{config.model}' has no norm for layers {config.layers}: leave 'norm' off"
                )
            levels = intermediates(model, pixels, layers, config.norm) if layers else [_final(model, pixels)]
        except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            wanted = f"layers {config.layers}" if config.layers else "features"
            raise ConfigError(
                f"encoder 'timm:{config.model}' gives no {wanted} of images of {side} pixels: {error}"
            ) from error
        features = join(levels)
        grid = features.grids[0]
        finest = next(i for i, level in zip(layers or [-1], levels, strict=True) if level.grid == grid)
        stride = _stride(whole, side, grid.rows, finest)
        return EncoderSpec(
            size=Size(side, side),
            stride=stride,
            width=features.tokens_ND.shape[1],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            prefix=0 if features.prefix_CPD is None else features.prefix_CPD.shape[1],
            resample=data["interpolation"]
            if data["interpolation"] in ("bilinear", "bicubic", "lanczos")
            else "bicubic",
            partial=side // stride != grid.rows,
            levels=alike(levels),
            architecture={"layers": layers, "unused": unused_parameters(model, features.tokens_ND)},
        )

    def load_pretrained(self) -> Provenance | None:
        if self.config.weights == "none":
            return None
        if self.config.weights == "hub":
            try:
                published = self._published()
            except Exception as error:
                raise ConfigError(
                    f"the weights of timm:{self.config.model} cannot be fetched ({type(error).__name__}: {error}): "
                    f"connect to the hub, or set --encoder.weights to a file, to package:NAME, or to none for new ones"
                ) from error
            self._copy(published)
            return Provenance(f"timm:{published.pretrained_cfg.get('hf_hub_id') or self.config.model}")
        path = find_weights(self.config.weights)
        published = timm.create_model(self.config.model)  # with its classifier, as files hold it
        load_weights(published, path)
        if self.config.size:
            published = self._published(state_dict=published.state_dict(), label_offset=0)
        self._copy(published)
        return Provenance(self.config.weights, sha256(path))

    def _published(self, **source: Any) -> Any:
        """The whole network with weights that timm has fitted to the input's size."""
        extra = _input_size(self.config)
        return timm.create_model(self.config.model, pretrained=True, pretrained_cfg_overlay=source, **extra)

    def _copy(self, published: nn.Module) -> None:
        """Take over what the published network has; what only the headless one has (a norm of its tokens) stays new."""
        state, own = published.state_dict(), self.model.state_dict()
        fitting = {name: value for name, value in state.items() if name in own}
        wrong = [name for name, value in fitting.items() if value.shape != own[name].shape]
        if wrong:
            raise ConfigError(
                f"the weights of timm:{self.config.model} do not fit an input of {self.config.size} pixels (first "
                f"'{wrong[0]}'): leave --encoder.size at 0"
            )
        self.model.load_state_dict(fitting, strict=False)

    def forward(self, pixels_C3HW: Float[Tensor, "C 3 height width"]) -> Features:
        pixels_C3HW = pixels_C3HW.to(next(self.model.parameters()).dtype)
        layers, unused = self.spec.architecture["layers"], self.spec.architecture["unused"]
        if layers:
            features = join(intermediates(self.model, pixels_C3HW, layers, self.config.norm))
        else:
            features = join([_final(self.model, pixels_C3HW)])
        return replace(features, tokens_ND=with_zero_gradients(features.tokens_ND, self.model, unused))

    def blocks(self) -> Sequence[nn.Module]:
        blocks = getattr(self.model, "blocks", ())
        return list(blocks) if isinstance(blocks, (nn.Sequential, nn.ModuleList)) else ()


def _create(config: TimmConfig) -> Any:
    name = config.model.split(".")[0]
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(f"timm has no model '{config.model}'{': similar are ' + ', '.join(close) if close else ''}")
    try:
        return timm.create_model(config.model, num_classes=0, global_pool="", **_input_size(config))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"timm model '{config.model}' cannot be an encoder: {error}") from error


def _input_size(config: TimmConfig) -> dict[str, int]:
    """The argument for networks that are built for one input size (ViTs); convolutional ones take any."""
    data = timm.get_pretrained_cfg(config.model)
    return {"img_size": config.size} if config.size and data and data.fixed_input_size else {}


def _final(model: Any, pixels_C3HW: Tensor) -> Level:
    """The model's final features; feature maps come with their channels first or last."""
    features = model.forward_features(pixels_C3HW)
    if features.ndim == 4:
        last = features.shape[-1] == model.num_features != features.shape[1]
        return Level(features.permute(0, 3, 1, 2) if last else features)
    count = features.shape[1] - int(getattr(model, "num_prefix_tokens", 0))
    rows = round(count**0.5)
    if rows * rows != count:
        raise ConfigError(
            f"timm model {type(model).__name__} returns {count} tokens for a square image: not a square grid"
        )
    return Level.of_tokens(features, Grid(rows, rows))


def _stride(model: nn.Module, side: int, rows: int, layer: int) -> int:
    """Pixels per token of a layer: what timm says, if it explains the grid."""
    info: Any = getattr(model, "feature_info", None) or [{}]
    declared = info[layer].get("reduction", 0) if layer < len(info) else 0
    return declared if declared and rows in (side // declared, -(-side // declared)) else round(side / rows)
