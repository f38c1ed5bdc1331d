"""A small vision transformer with a convolutional stem, trained from scratch.

Convolutions see edges and shapes long before a patch embedding of the same cost would (Xiao et al. 2021, arXiv
2106.14881), so the stem halves the image with 3×3 convolutions and residual blocks; pre-norm attention blocks follow;
last, neighbouring tokens are merged, so that the language model reads few of them.

Shapes: C crops, L hidden states, N tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import Provenance, VisionEncoder
from beni.nn.blocks import attend
from beni.types import EncoderSpec, Features, Size
from beni.weights import find_weights, sha256, take_weights


@dataclass(frozen=True, slots=True)
class TinyEncoderConfig(PartConfig):
    size: int = 64
    """Side of the square input in pixels; divisible by `merge` times 2 to the number of stem stages."""
    stem: tuple[int, ...] = (32, 64, 128)
    """Channels of the stem's stages, each of which halves the image."""
    blocks: tuple[int, ...] = (0, 1, 1)
    """Residual blocks of two 3×3 convolutions behind each stage."""
    width: int = 128
    """Channels of the transformer and of the features."""
    layers: int = 2
    """Attention blocks."""
    outputs: tuple[int, ...] = (-1,)
    """Hidden states that are the features, joined by channel: 0 what enters the first attention block, -1 what leaves
    the last one, which must be among them, -2 what leaves the last but one …"""
    heads: int = 4
    """Attention heads."""
    merge: int = 1
    """Tokens merged into one along each side, after the attention blocks; 1 keeps them all."""
    weights: str = "none"
    """none: from scratch; RUN/model or its file: those of an encoder of this kind and size that was trained there."""

    def __post_init__(self) -> None:
        stride = self.stride
        if self.size % stride:
            near = max(stride, round(self.size / stride) * stride)
            raise ConfigError(f"encoder 'tiny', option 'size': {self.size} is not divisible by {stride}; {near} is")
        if self.width % self.heads:
            raise ConfigError(f"encoder 'tiny': width {self.width} is not divisible by heads {self.heads}")
        states = range(-self.layers - 1, self.layers + 1)
        if not {-1, self.layers} & set(self.outputs) or not set(self.outputs) <= set(states):
            raise ConfigError(
                f"encoder 'tiny', option 'outputs': {self.outputs} must have the last block's, -1, and may have others "
                f"of the {self.layers + 1} hidden states, counted from 0 or backwards from -1"
            )
        if len(self.blocks) != len(self.stem):
            raise ConfigError(f"encoder 'tiny': {len(self.stem)} stem stages need {len(self.stem)} numbers of blocks")

    @property
    def stride(self) -> int:
        """Pixels per token along a side."""
        return self.merge * 2 ** len(self.stem)


class TinyEncoder(VisionEncoder):
    """Stem, learned positions, attention blocks, merge, norm."""

    beni_api = 1
    Config = TinyEncoderConfig

    def __init__(self, config: Any, spec: EncoderSpec) -> None:
        super().__init__(config, spec)
        stages: list[nn.Module] = []
        width = 3
        for out, count in zip(config.stem, config.blocks, strict=True):
            stages += [nn.Conv2d(width, out, 3, stride=2, padding=1, bias=False), _norm(out), nn.GELU()]
            stages += [ConvBlock(out) for _ in range(count)]
            width = out
        self.stem = nn.Sequential(*stages, nn.Conv2d(width, config.width, 1))
        for module in self.stem.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        tokens = (spec.size.width // 2 ** len(config.stem)) ** 2
        self.position_ND = nn.Parameter(0.02 * torch.randn(tokens, config.width))
        self.layers = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.merge = nn.Linear(config.merge**2 * config.width, config.width) if config.merge > 1 else nn.Identity()
        self.norm = nn.LayerNorm(config.width)

    @classmethod
    def describe(cls, config: Any) -> EncoderSpec:
        return EncoderSpec(
            size=Size(config.size, config.size),
            stride=config.stride,
            width=config.width * len(config.outputs),
            levels=len(config.outputs),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resample="bilinear",
        )

    def forward(self, pixels_C3HW: Float[Tensor, "C 3 height width"]) -> Features:
        x_CND = rearrange(self.stem(pixels_C3HW.to(self.norm.weight.dtype)), "c d h w -> c (h w) d")
        x_CND = x_CND + self.position_ND
        states = [x_CND, *(x_CND := block(x_CND) for block in self.layers)]
        grid, side = self.spec.grid(self.spec.size), self.config.merge
        x_CLND = torch.stack([states[index] for index in self.config.outputs], dim=1)
        x_CLND = rearrange(x_CLND, "c l (h p w q) d -> c l (h w) (p q d)", h=grid.rows, w=grid.cols, p=side, q=side)
        x_ND = rearrange(self.norm(self.merge(x_CLND)), "c l n d -> (c n) (l d)")
        return Features(x_ND, (grid,) * len(x_CLND))

    def load_pretrained(self) -> Provenance | None:
        if self.config.weights == "none":
            return None
        path = find_weights(self.config.weights)
        take_weights(self, path)
        return Provenance(self.config.weights, sha256(path))

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)


class ConvBlock(nn.Module):
    """x + norm(conv(gelu(norm(conv(x))))); the last norm starts at zero, so the block starts as nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _norm(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Float[Tensor, "C D height width"]) -> Float[Tensor, "C D height width"]:
        return x + self.norm2(self.conv2(nn.functional.gelu(self.norm1(self.conv1(x)))))


class Block(nn.Module):
    """Pre-norm self-attention and a GELU MLP of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_CND: Float[Tensor, "C N D"]) -> Float[Tensor, "C N D"]:
        q, k, v = self.qkv(self.norm1(x_CND)).chunk(3, dim=-1)
        x_CND = x_CND + self.proj(attend(q, k, v, self.heads))
        return x_CND + self.mlp(self.norm2(x_CND))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // 16), width)
