"""Any Hugging Face vision model as an encoder: CLIP, SigLIP, DINOv2, ViT, ConvNeXt and others with their interface."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import Provenance, VisionEncoder
from beni.nn.unused import unused_parameters, with_zero_gradients
from beni.types import EncoderSpec, Features, Grid, Size

UNUSED = "beni_unused_parameters"
"""Key, beside those of the network's own configuration, of parameters that the features do not depend on."""


@dataclass(frozen=True, slots=True)
class HfEncoderConfig(PartConfig):
    argument: ClassVar[str] = "model"

    model: str = "google/siglip-base-patch16-224"
    """Hugging Face id or folder of a vision model, or of a model with a vision tower."""
    weights: Literal["hub", "none"] = "hub"
    """hub: the published weights (a folder's own, for a folder); none: the same architecture from scratch."""
    layer: int = -2
    """Which hidden states are the features: -1 the last, -2 the last but one (LLaVA's choice) …"""


class HfEncoder(VisionEncoder):
    """Hidden states of one layer; tokens in front of the grid (CLS, registers) are the prefix."""

    beni_api = 1
    Config = HfEncoderConfig

    def __init__(self, config: Any, spec: EncoderSpec) -> None:
        super().__init__(config, spec)
        self.model = AutoModel.from_config(_vision_config(spec.architecture))

    @classmethod
    def describe(cls, config: Any) -> EncoderSpec:
        try:
            full = AutoConfig.from_pretrained(config.model)
            images, _ = ImageProcessingMixin.get_image_processor_dict(config.model)
        except (OSError, ValueError) as error:
            raise ConfigError(f"encoder 'hf:{config.model}' cannot be read: {str(error).splitlines()[0]}") from error
        vision: PreTrainedConfig = getattr(full, "vision_config", full)
        known = {**vision.to_dict(), "model_type": vision.model_type}
        known.pop("_name_or_path", None)  # of this machine, if it is a folder
        architecture = json.loads(json.dumps(known))  # as it will be read again: keys of labels are strings
        size = getattr(vision, "image_size", None)
        if size is None:
            size = _processor_side(images)
        side = size if isinstance(size, int) else size[0]
        with torch.device("meta"):
            model = AutoModel.from_config(_vision_config(architecture)).eval()
        if model.main_input_name != "pixel_values":
            raise ConfigError(f"encoder 'hf:{config.model}': a {vision.model_type} model is not a vision model")
        states = model(torch.empty(1, 3, side, side, device="meta"), output_hidden_states=True).hidden_states
        if not -len(states) <= config.layer < len(states):
            raise ConfigError(
                f"encoder 'hf:{config.model}' has {len(states)} hidden states: there is no layer {config.layer}"
            )
        grid, prefix, width = _shape(states[config.layer], getattr(vision, "patch_size", None), side)
        return EncoderSpec(
            size=Size(side, side),
            stride=side // grid.rows,
            width=width,
            mean=tuple(images.get("image_mean", (0.5, 0.5, 0.5))),
            std=tuple(images.get("image_std", (0.5, 0.5, 0.5))),
            prefix=prefix,
            architecture=architecture | {UNUSED: unused_parameters(model, states[config.layer])},
        )

    def load_pretrained(self) -> Provenance | None:
        if self.config.weights == "none":
            return None
        try:
            published = AutoModel.from_pretrained(self.config.model, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"weights of 'hf:{self.config.model}' cannot be read: {str(error).splitlines()[0]}"
            ) from error
        published = getattr(published, "vision_model", published)
        state, own = published.state_dict(), self.model.state_dict()
        prefix = "" if own.keys() <= state.keys() else "vision_model."
        self.model.load_state_dict({name: state[name.removeprefix(prefix)] for name in own})
        return Provenance(self.config.model)

    def forward(self, pixels_C3HW: Float[Tensor, "C 3 height width"]) -> Features:
        states = self.model(pixels_C3HW.to(self.model.dtype), output_hidden_states=True).hidden_states
        features = with_zero_gradients(states[self.config.layer], self.model, self.spec.architecture[UNUSED])
        grid = self.spec.grid(self.spec.size)
        if features.ndim == 4:
            return Features(features.permute(0, 2, 3, 1).reshape(-1, self.spec.width), (grid,) * len(features))
        prefix, tokens = features.split([self.spec.prefix, grid.count], dim=1)
        return Features(tokens.flatten(0, 1), (grid,) * len(features), prefix if self.spec.prefix else None)

    def blocks(self) -> Sequence[nn.Module]:
        count = getattr(self.model.config, "num_hidden_layers", 0)
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        return list(lists[0]) if len(lists) == 1 else ()


def _vision_config(architecture: Mapping[str, Any]) -> PreTrainedConfig:
    table = {name: value for name, value in architecture.items() if name != UNUSED}
    return AutoConfig.for_model(table.pop("model_type"), **table)


def _processor_side(images: Mapping[str, Any]) -> int:
    size = images.get("crop_size") or images.get("size") or {}
    return int(size.get("height") or size.get("shortest_edge") or 224) if isinstance(size, Mapping) else int(size)


def _shape(features: Tensor, patch: int | None, side: int) -> tuple[Grid, int, int]:
    """Grid, prefix tokens and width of a square image's features."""
    if features.ndim == 4:
        return Grid(features.shape[2], features.shape[3]), 0, features.shape[1]
    count = features.shape[1]
    rows = side // patch if patch and (side // patch) ** 2 <= count else isqrt(count)  # merging networks have fewer
    return Grid(rows, rows), count - rows * rows, features.shape[2]
