"""A small vision transformer with a convolutional stem, trained from scratch.

The stem halves the image a few times with 3×3 convolutions, which see edges and colours long before a patch embedding of
the same cost would (Xiao et al. 2021, arXiv 2106.14881); pre-norm attention blocks follow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import VisionEncoder
from beni.nn.blocks import attend
from beni.types import EncoderSpec, Features, Size


@dataclass(frozen=True, slots=True)
class TinyEncoderConfig(PartConfig):
    size: int = 64
    """Side of the square input in pixels; divisible by 2 to the number of stem widths."""
    stem: tuple[int, ...] = (32, 64, 128)
    """Channels of the stem's convolutions, each of which halves the image."""
    width: int = 128
    """Channels of the transformer and of the features."""
    layers: int = 2
    """Attention blocks."""
    heads: int = 4
    """Attention heads."""

    def __post_init__(self) -> None:
        stride = 2 ** len(self.stem)
        if self.size % stride:
            near = max(stride, round(self.size / stride) * stride)
            raise ConfigError(f"encoder 'tiny', option 'size': {self.size} is not divisible by {stride}; {near} is")
        if self.width % (4 * self.heads):
            raise ConfigError(f"encoder 'tiny': width {self.width} is not divisible by 4 × heads = {4 * self.heads}")


class TinyEncoder(VisionEncoder):
    """Stem, fixed 2-D sine positions, attention blocks, final norm."""

    beni_api = 1
    Config = TinyEncoderConfig

    def __init__(self, config: Any, spec: EncoderSpec) -> None:
        super().__init__(config, spec)
        stem: list[nn.Module] = []
        width = 3
        for out in config.stem:
            stem += [nn.Conv2d(width, out, 3, stride=2, padding=1, bias=False), nn.GroupNorm(max(1, out // 16), out), nn.GELU()]
            width = out
        self.stem = nn.Sequential(*stem, nn.Conv2d(width, config.width, 1))
        self.layers = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        grid = spec.grid(spec.size)
        self.register_buffer("position_ND", sine_positions(grid.rows, grid.cols, config.width))

    @classmethod
    def describe(cls, config: Any) -> EncoderSpec:
        return EncoderSpec(
            size=Size(config.size, config.size),
            stride=2 ** len(config.stem),
            width=config.width,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resample="bilinear",
        )

    def forward(self, pixels_C3HW: Float[Tensor, "C 3 height width"]) -> Features:
        x_CND = rearrange(self.stem(pixels_C3HW.to(self.norm.weight.dtype)), "c d h w -> c (h w) d")
        x_CND = x_CND + self.position_ND.to(x_CND.dtype)
        for block in self.layers:
            x_CND = block(x_CND)
        grid = self.spec.grid(self.spec.size)
        return Features(self.norm(x_CND).flatten(0, 1), (grid,) * len(x_CND))

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)


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


def sine_positions(rows: int, cols: int, width: int) -> Float[Tensor, "N D"]:
    """Fixed 2-D positions: half of the channels encode the row, half the column (Vaswani et al. 2017, per axis)."""
    quarter = width // 4
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(quarter) / quarter)

    def axis(count: int) -> Tensor:
        angle = torch.arange(count)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    row = axis(rows)[:, None].expand(rows, cols, -1)
    col = axis(cols)[None].expand(rows, cols, -1)
    return torch.cat([row, col], dim=-1).reshape(rows * cols, width)
