"""Low-rank adapters by PEFT: put into a loaded model, trained beside it, merged into what is saved.

Adapters live inside the layers they adapt, so no forward pass changes and the model's class stays. Names get longer
(`q_proj.base_layer.weight`, `q_proj.lora_A.default.weight`) until they are merged.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from beni.config import PeftOptions
from beni.errors import ConfigError
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.parts import LORA, blocks_of

NAME = "default"
"""PEFT's name for the only adapter there is."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """Those of one part."""

    part: str
    """llm or encoder.KEY."""
    root: str
    """Path of the module that they were put into."""
    paths: tuple[str, ...]
    """Of the adapted layers, from the root."""
    config: Any
    """PEFT's `LoraConfig`."""

    def summary(self) -> str:
        """The paths, for people."""
        return alike(self.paths)


def alike(paths: Iterable[str]) -> str:
    """Paths, those that differ in numbers alone as one with a count."""
    found = Counter(re.sub(r"\d+", "*", path) for path in paths)
    return ", ".join(f"{count} x {path}" for path, count in found.items())


def add_adapters(model: BeniForConditionalGeneration, options: PeftOptions) -> list[Adapters]:
    """Give linear layers adapters that compute nothing yet; weights must be loaded, since DoRA starts from them.

    Args:
        model: changed in place.
        options: which parts, which layers, and what kind.

    Raises:
        ConfigError: no layer of a part fits.
    """
    added = []
    for part, root, kind in _wanted(model, options):
        if kind == "none":
            continue
        from peft import LoraConfig, inject_adapter_in_model  # a second, for runs that have adapters

        module = model.get_submodule(root)
        every = list(linear_layers(module, blocks_of(model, part) or [module]))
        paths = tuple(path for path in every if re.fullmatch(options.peft_targets or ".*", path))
        if not every:
            raise ConfigError(f"{part} has no linear layers in its blocks: nothing can be adapted")
        if not paths:
            raise ConfigError(
                f"--peft-targets '{options.peft_targets}' is the whole path of no linear layer of {part}, as "
                f"{every[0]} would be; it has {len(every)}"
            )
        config = LoraConfig(
            r=options.peft_rank,
            lora_alpha=options.peft_alpha,  # type: ignore[arg-type]
            lora_dropout=options.peft_dropout,
            use_rslora=kind == "rslora",
            use_dora=kind == "dora",
            target_modules="|".join(re.escape(path) for path in paths),
        )
        hollow = any(parameter.is_meta for parameter in module.parameters())
        inject_adapter_in_model(config, module, adapter_name=NAME, low_cpu_mem_usage=hollow)
        added.append(Adapters(part, root, paths, config))
    return added


def _wanted(model: BeniForConditionalGeneration, options: PeftOptions) -> Iterator[tuple[str, str, str]]:
    """(part, path of its module, kind of adapter) of everything that could have adapters."""
    yield "llm", "llm", options.peft
    for key in model.encoders:
        yield f"encoder.{key}", f"encoders.{key}", options.peft_encoder


def linear_layers(module: nn.Module, blocks: Iterable[nn.Module]) -> Iterator[str]:
    """Paths of the linear layers in blocks that are called as layers; torch's own attention reads weights instead."""
    from transformers.pytorch_utils import Conv1D

    inside = {id(layer) for block in blocks for layer in block.modules()}
    read = {id(m) for owner in module.modules() if isinstance(owner, nn.MultiheadAttention) for m in owner.modules()}
    for path, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, Conv1D)) and id(layer) in inside - read:
            yield path


def merge(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's whole state with adapters added to the weights that they adapt, under the names without adapters.

    W' = W + s·B·A (Hu et al. 2021, eq. 3; s is alpha/rank, or alpha/√rank); DoRA: each row of that, scaled to the
    trained length (Liu et al. 2024, eq. 5).

    Args:
        model: has the adapters; its parameters may be sharded.
        state: all of its parameters and buffers, whole.
    """
    adapted = {path: layer for path, layer in model.named_modules() if hasattr(layer, "lora_A")}
    merged = {}
    for name, value in state.items():
        inside = re.fullmatch(r"(.+?)\.(?:base_layer\.(.+)|lora_.+)", name)
        if inside is None or inside[1] not in adapted:
            merged[name] = value
        elif inside[2] == "weight":
            merged[f"{inside[1]}.weight"] = _merged(inside[1], adapted[inside[1]], state)
        elif inside[2]:
            merged[f"{inside[1]}.{inside[2]}"] = value
    return merged


def _merged(path: str, layer: Any, state: Mapping[str, Tensor]) -> Tensor:
    weight, a, b = (state[f"{path}.{name}.weight"] for name in ("base_layer", f"lora_A.{NAME}", f"lora_B.{NAME}"))
    base = weight.T if layer.fan_in_fan_out else weight
    rows = base.double() + layer.scaling[NAME] * (b.double() @ a.double())
    length = state.get(f"{path}.lora_magnitude_vector.{NAME}.weight")
    if length is not None:
        rows = rows * (length.double() / torch.linalg.norm(rows, dim=1))[:, None]
    return (rows.T if layer.fan_in_fan_out else rows).to(weight.dtype).contiguous()


def save_adapters(folder: Path, added: list[Adapters], state: Mapping[str, Tensor]) -> None:
    """Write each part's adapters as PEFT does, for `PeftModel.from_pretrained` around that part alone.

    Args:
        folder: gets a folder for each part.
        added: what `add_adapters` returned.
        state: the model's whole state, adapters not merged.
    """
    for adapters in added:
        own = folder / adapters.part
        own.mkdir(parents=True, exist_ok=True)
        adapters.config.save_pretrained(own)
        start = f"{adapters.root}."
        found = {n.removeprefix(start): v for n, v in state.items() if n.startswith(start) and LORA.search(n)}
        named = {f"base_model.model.{name.replace(f'.{NAME}', '')}": v.contiguous() for name, v in found.items()}
        save_file(named, own / "adapter_model.safetensors", metadata={"format": "pt"})
