"""Neighbouring tokens side by side on the channel axis, then one linear layer: fewer tokens, nothing averaged away.

References: `raster4` Vision-CAIR/MiniGPT-4, minigpt4/models/minigpt_v2.py (encode_img), where four tokens that follow
each other row by row become one, a strip of 1×4; `square2` the pixel shuffle of Idefics3 (transformers,
models/idefics3/modeling_idefics3.py) and nanoVLM (models/modality_projector.py), a block of 2×2.

Shapes: C crops, D channels, h and w rows and columns of the merged grid, p and q rows and columns of a block.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import ConfigError, ExportError, GridError
from beni.interfaces import Connector, ConnectorConfig, NativeProjector
from beni.types import EncoderSpec, Features, Grid
from beni.weights import renamed


@dataclass(frozen=True, slots=True)
class ConcatConfig(ConnectorConfig):
    order: str = "square2"
    """squareN: blocks of N×N tokens; rasterN: strips of N tokens that follow each other in a row."""
    bias: bool = True
    """Whether the linear layer has a bias; MiniGPT-v2's has one, the pixel shuffles' have none."""

    def __post_init__(self) -> None:
        if min(self.block) < 1:
            raise ConfigError(
                f"connector 'concat', option 'order': '{self.order}' is neither squareN nor rasterN (N = 1, 2, …)"
            )

    @property
    def block(self) -> Grid:
        """Rows and columns of what becomes one token; 0x0 for an order that does not exist."""
        found = re.fullmatch(r"(square|raster)(\d+)", self.order)
        if found is None:
            return Grid(0, 0)
        return Grid(int(found[2]) if found[1] == "square" else 1, int(found[2]))

    def out_grid(self, grid: Grid) -> Grid:
        rows, cols = self.block
        if grid.rows % rows or grid.cols % cols:
            near = self._nearest(grid)
            raise GridError(
                f"connector 'concat' merges {self.block} tokens into one ('{self.order}'), which does not divide a "
                f"grid of {grid}; {near} would do",
                near,
            )
        return Grid(grid.rows // rows, grid.cols // cols)

    def _nearest(self, grid: Grid) -> Grid:
        """A grid that divides; a square one for a square one, since most encoders take square images only."""
        rows, cols = self.block if grid.rows != grid.cols else (lcm(*self.block),) * 2
        return Grid(max(1, round(grid.rows / rows)) * rows, max(1, round(grid.cols / cols)) * cols)


class Concat(Connector):
    """Space to depth, then Linear."""

    beni_api = 1
    Config = ConcatConfig

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.proj = nn.Linear(config.block.count * self.in_width, out_width, bias=config.bias)

    def project(self, features: Features) -> Float[Tensor, "V out"]:
        rows, cols = self.config.block
        merged = [
            rearrange(
                x_CND, "c (h p w q) d -> (c h w) (p q d)", h=grid.rows // rows, p=rows, w=grid.cols // cols, q=cols
            )
            for grid, x_CND in features.runs()
        ]
        return self.proj(torch.cat(merged))

    def native(self, to: str) -> NativeProjector:
        """Blocks of N×N tokens and no bias are the projector of Idefics3."""
        if to != "idefics3":
            return super().native(to)
        rows, cols = self.config.block
        if rows != cols or self.config.bias:
            raise ExportError(
                f"connector 'concat' with the order '{self.config.order}' and bias {self.config.bias} is not the "
                f"projector of '{to}': --connector.order squareN --connector.no-bias is"
            )
        return NativeProjector({"scale_factor": rows}, {"modality_projection.proj.weight": self.proj.weight.detach()})

    def convert_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """MiniGPT-v2's `llama_proj`; the projection of transformers' Idefics3 and SmolVLM, and of nanoVLM."""
        projection = r"(?:llama_proj|modality_projection\.proj|MP\.proj)"
        return renamed(state, {rf"{projection}\.(weight|bias)": r"proj.\1"})
