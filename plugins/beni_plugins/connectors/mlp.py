"""The MLP projector of LLaVA: every token is mapped to the width the fusion wants, one by one.

Reference: haotian-liu/LLaVA, llava/model/multimodal_projector/builder.py (build_vision_projector).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import ConfigError
from beni.interfaces import Connector, ConnectorConfig
from beni.types import EncoderSpec, Features, Grid


@dataclass(frozen=True, slots=True)
class MlpConfig(ConnectorConfig):
    kind: str = "mlp2x_gelu"
    """linear, or mlpNx_gelu: N linear layers with exact GELU between them."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ConfigError(
                f"connector 'mlp', option 'kind': '{self.kind}' is neither linear nor mlpNx_gelu (N = 1, 2, …)"
            )

    @property
    def layers(self) -> int:
        """Number of linear layers; 0 for a kind that does not exist."""
        found = re.fullmatch(r"mlp(\d+)x_gelu", self.kind)
        return 1 if self.kind == "linear" else int(found[1]) if found else 0

    def out_grid(self, grid: Grid) -> Grid:
        return grid


class Mlp(Connector):
    """Token-wise projector; keeps the grid."""

    beni_api = 1
    Config = MlpConfig

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        layers: list[nn.Module] = [nn.Linear(self.in_width, out_width)]
        for _ in range(config.layers - 1):
            layers += [nn.GELU(), nn.Linear(out_width, out_width)]
        self.layers = nn.Sequential(*layers)

    def project(self, features: Features) -> Float[Tensor, "V out"]:
        return self.layers(features.tokens_ND)
