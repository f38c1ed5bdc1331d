"""C-Abstractor (Honeybee): convolutions, a pooling to a small grid, convolutions; neighbours stay neighbours.

Reference: Cha et al. 2023, arXiv 2312.06742; khanrc/honeybee (CAbstractor). The blocks are RegNet's with
squeeze-and-excitation, SiLU and LayerNorm, from timm, as in the reference. Its learned positions, which bind it to one
grid, are left out, so that crops of every size can be read.

Shapes: C crops, D channels, h and w rows and columns of a crop's map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import Tensor, nn

from beni.config import at_least_one
from beni.errors import GridError
from beni.interfaces import Connector, ConnectorConfig
from beni.types import EncoderSpec, Features, Grid


@dataclass(frozen=True, slots=True)
class CAbstractorConfig(ConnectorConfig):
    side: int = 4
    """Side of the grid that every crop becomes; 12 and 16 in the reference."""
    width: int = 128
    """Channels of the convolutions; 1024 in the reference."""
    depth: int = 1
    """Blocks before the pooling, and as many behind it; 3 in the reference."""
    mlp_depth: int = 2
    """Linear layers at the end, with SiLU between them; as in the reference."""

    def __post_init__(self) -> None:
        at_least_one(self, "connector", "cabstractor", "side", "width", "depth", "mlp_depth")

    def out_grid(self, grid: Grid) -> Grid:
        if min(grid) < self.side:
            near = Grid(*(max(length, self.side) for length in grid))
            raise GridError(
                f"connector 'cabstractor' pools to {self.side}x{self.side} tokens, more than a grid of {grid} has; "
                f"{near} would do, or a smaller --connector.side",
                near,
            )
        return Grid(self.side, self.side)


class CAbstractor(Connector):
    """Each crop by itself, whatever its grid."""

    beni_api = 1
    Config = CAbstractorConfig

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.net = nn.Sequential(
            _stage(config.depth, self.in_width, config.width),
            nn.AdaptiveAvgPool2d((config.side, config.side)),
            _stage(config.depth, config.width, config.width),
        )
        layers: list[nn.Module] = [nn.Linear(config.width, out_width)]
        for _ in range(config.mlp_depth - 1):
            layers += [nn.SiLU(), nn.Linear(out_width, out_width)]
        self.readout = nn.Sequential(*layers)

    def project(self, features: Features) -> Float[Tensor, "V out"]:
        maps = [self.net(rearrange(x_CND, "c (h w) d -> c d h w", h=grid.rows)) for grid, x_CND in features.runs()]
        return self.readout(rearrange(torch.cat(maps), "c d h w -> (c h w) d"))


def _stage(depth: int, in_width: int, width: int) -> nn.Module:
    return RegStage(depth, in_width, width, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
