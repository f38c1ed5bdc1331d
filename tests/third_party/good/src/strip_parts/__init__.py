"""One visual token per row of the grid: a learned score says how much of each token goes into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from beni.interfaces import Connector, ConnectorConfig
from beni.types import EncoderSpec, Features, Grid


@dataclass(frozen=True, slots=True)
class StripsConfig(ConnectorConfig):
    heads: int = 2
    """Groups of channels that are weighted by themselves; divides the encoder's width."""

    def out_grid(self, grid: Grid) -> Grid:
        return Grid(grid.rows, 1)


class Strips(Connector):
    """Weighted means of rows, then Linear."""

    beni_api = 1
    Config = StripsConfig

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.score = nn.Linear(self.in_width, config.heads)
        self.proj = nn.Linear(self.in_width, out_width)

    def project(self, features: Features) -> Tensor:
        heads, strips = self.config.heads, []
        for grid, x_CND in features.runs():
            x = x_CND.unflatten(1, tuple(grid))  # crops, rows, columns, channels
            share = self.score(x).softmax(dim=2).repeat_interleave(self.in_width // heads, dim=-1)
            strips.append((share * x).sum(dim=2).flatten(0, 1))
        return self.proj(torch.cat(strips))
