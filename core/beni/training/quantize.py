"""Quantized bases: the linear layers of the language model's decoder layers, kept in 8 or 4 bits, frozen.

A weight becomes codes, and a few fp32 numbers that scale each group of them. Both are parameters that hold whole
numbers, so that little else needs to know them: FSDP2 shards them and does not cast them, the checksum of what is
frozen reads their bits, checkpoints leave them out. For each product the weight is made of them in fp32 and rounded
once, to the precision of the computation: a run in bf16 has the same base as one in fp32.

The packages' own layers (`HQQLinear`, `Linear4bit`) are not used: the first keeps its scales out of reach of all of
this, and its state cannot be gathered from several processes; the second may pack its weight anew when it is evaluated
on a CPU.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from beni.config import OptimConfig, PeftOptions
from beni.errors import ConfigError, with_extra
from beni.model.llm import decoder_layers
from beni.model.modeling import BeniForConditionalGeneration
from beni.training.adapters import alike, linear_layers

GROUP = 64
"""Weights of a row that share their scale: the default of both packages."""
PART = "llm"
"""What is quantized."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a weight [out, in] becomes codes (uint8) and scales (fp32), and what weight they stand for."""

    name: str
    """As `--quant` takes it."""
    package: str
    """That computes it; imported when it is used."""
    extra: str
    """Of beni, which installs the package."""
    pack: Callable[[Tensor], tuple[Tensor, Tensor]]
    unpack: Callable[[Tensor, Tensor, tuple[int, int]], Tensor]


def _hqq(bits: int) -> Scheme:
    """Half-quadratic quantization (Badri and Shaji 2023): W = (code - zero)·scale, zeros fitted to keep outliers."""

    def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
        from hqq.core.quantize import BaseQuantizeConfig, Quantizer

        settings = BaseQuantizeConfig(nbits=bits, group_size=GROUP)["weight_quant_params"]
        codes, found = Quantizer.quantize(weight, device=weight.device, **settings)
        return codes, torch.cat((found["scale"], found["zero"]), dim=1)

    def unpack(codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
        from hqq.core.quantize import Quantizer

        meta = {"nbits": bits, "packing": Quantizer.bit_to_packing[bits], "view_as_float": False, "shape": shape}
        found = {"scale": scales[:, :1], "zero": scales[:, 1:], "compute_dtype": torch.float32}
        return Quantizer.dequantize(codes, meta | found)

    return Scheme(f"hqq{bits}", "hqq", "hqq", pack, unpack)


def _nf4() -> Scheme:
    """NormalFloat (Dettmers et al. 2023, section 3): codes are quantiles of a normal distribution, scaled."""

    def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import quantize_4bit

        codes, found = quantize_4bit(weight.contiguous(), blocksize=GROUP, quant_type="nf4")
        return codes, found.absmax

    def unpack(codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        found = QuantState(absmax=scales, shape=shape, dtype=torch.float32, blocksize=GROUP, quant_type="nf4")
        return dequantize_4bit(codes, found)

    return Scheme("nf4", "bitsandbytes", "bnb", pack, unpack)


SCHEMES = {scheme.name: scheme for scheme in (_hqq(8), _hqq(4), _nf4())}
"""By name."""


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is kept as codes.

    To others, PEFT among them, it is a linear layer: `weight` is what the codes stand for, made at every access.

    Args:
        layer: the layer that it replaces; its bias is kept as it is.
        scheme: makes the codes.
        device: where they are computed.
    """

    def __init__(self, layer: nn.Linear, scheme: Scheme, device: torch.device) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear, which allocates a weight
        self.in_features, self.out_features, self.scheme = layer.in_features, layer.out_features, scheme
        home = layer.weight.device
        codes, scales = scheme.pack(_values(layer.weight, device))
        self.codes = nn.Parameter(codes.to(home), requires_grad=False)
        bits = scales.to(home, torch.float32).view(torch.int32)  # FSDP2 casts what is a float to bf16
        self.scales = nn.Parameter(bits, requires_grad=False)
        self.register_parameter("bias", layer.bias)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out, in] in fp32."""
        return self.restore(self.codes, self.scales)

    def restore(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The weight [out, in] that codes and the bits of their scales stand for, in fp32."""
        return self.scheme.unpack(codes, scales.view(torch.float32), (self.out_features, self.in_features))

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = _Product.apply(input, self.restore, self.codes, self.scales)
        return product if self.bias is None else product + self.bias


def _values(weight: Tensor, device: torch.device) -> Tensor:
    """A weight in fp32; zeros for one without memory, which will be given the codes of another process's."""
    return torch.zeros(weight.shape, device=device) if weight.is_meta else weight.detach().to(device, torch.float32)


class _Product(torch.autograd.Function):
    """x Wᵀ, for whose backward pass codes are kept and W is not."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, restore: Callable[..., Tensor], codes: Tensor, scales: Tensor) -> Tensor:
        ctx.restore = restore
        ctx.save_for_backward(codes, scales)
        return nn.functional.linear(input, restore(codes, scales).to(input.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient @ ctx.restore(*ctx.saved_tensors).to(gradient.dtype), None, None, None


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was quantized."""

    part: str
    scheme: str
    layers: tuple[str, ...]
    """Paths in the part."""
    left: tuple[str, ...]
    """Paths of linear layers that the scheme cannot take."""
    bytes_before: int
    """Of the weights of `layers`."""
    bytes_after: int
    """Of their codes and scales."""

    def summary(self) -> str:
        """For people."""
        size = f"{self.bytes_before / 1e6:.4g} MB in {self.bytes_after / 1e6:.4g} MB"
        left = f"; left as they are, without {GROUP} · n inputs and 2 · n outputs: {alike(self.left)}"
        return f"{self.part} in {self.scheme}, {size}: {alike(self.layers)}{left if self.left else ''}"


def check(peft: PeftOptions, optim: OptimConfig) -> None:
    """Refuse what a quantized base cannot do, before anything is loaded.

    Raises:
        ConfigError: the base is to be trained, or the package is missing.
    """
    if peft.quant == "none":
        return
    if PART in optim.train:
        raise ConfigError(
            f"--train {PART} --quant {peft.quant}: quantized weights cannot be trained; leave out one of them, or "
            f"train adapters in them instead: --peft lora"
        )
    scheme = SCHEMES[peft.quant]
    try:
        import_module(scheme.package)
    except ImportError as error:
        raise ConfigError(
            f"--quant {scheme.name} needs the package {scheme.package}: {with_extra(scheme.extra)} ({error})"
        ) from error


def quantize(model: BeniForConditionalGeneration, name: str, device: torch.device) -> Quantized | None:
    """Replace the linear layers of the language model's decoder layers by quantized ones; weights must be loaded.

    Embeddings, head and norms stay, and so does a layer whose inputs are no whole number of groups.

    Args:
        model: changed in place.
        name: of the scheme; `none` changes nothing.
        device: where codes are computed; they stay where the weights were.

    Raises:
        ConfigError: no layer can be quantized.
    """
    if name == "none":
        return None
    root: nn.Module = model.llm
    layers, left, before, after = [], [], 0, 0
    for path in list(linear_layers(root, decoder_layers(model.llm))):
        layer = root.get_submodule(path)
        if not isinstance(layer, nn.Linear) or layer.in_features % GROUP or layer.out_features % 2:
            left.append(path)
            continue
        quantized = QuantizedLinear(layer, SCHEMES[name], device)
        root.set_submodule(path, quantized)
        layers.append(path)
        before += layer.weight.nbytes
        after += quantized.codes.nbytes + quantized.scales.nbytes
    if not layers:
        example = f"'{left[0]}' is {root.get_submodule(left[0])}" if left else f"{PART} has none in its decoder layers"
        raise ConfigError(
            f"--quant {name} takes linear layers with a multiple of {GROUP} inputs and an even number of outputs: "
            f"{example}"
        )
    return Quantized(PART, name, tuple(layers), tuple(left), before, after)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """By path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


def sizes(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Names of a model's parameters, and how many numbers each holds: codes as many as the weight had, scales none."""
    quantized = quantized_layers(model)
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        size, layer = parameter.numel(), quantized.get(path)
        if layer is not None and own != "bias":
            size = layer.in_features * layer.out_features if own == "codes" else 0
        yield name, size


def restored(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's whole state with weights instead of the codes that stand for them, under the names that they had.

    Args:
        model: its parameters may be sharded.
        state: all of its parameters and buffers, whole.
    """
    plain = dict(state)
    for path, layer in quantized_layers(model).items():
        codes, scales = plain.pop(f"{path}.codes"), plain.pop(f"{path}.scales")
        plain[f"{path}.weight"] = layer.restore(codes, scales)
    return plain
