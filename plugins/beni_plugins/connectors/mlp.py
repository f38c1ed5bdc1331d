"""The MLP projector of LLaVA: every token is mapped to the width the fusion wants, one by one.

References: haotian-liu/LLaVA, llava/model/multimodal_projector/builder.py (build_vision_projector); the residual kind,
LLaVA-VL/LLaVA-NeXT, the same file (SimpleResBlock).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import ConfigError, ExportError
from beni.interfaces import Connector, ConnectorConfig, NativeProjector
from beni.types import EncoderSpec, Features, Grid
from beni.weights import renamed


@dataclass(frozen=True, slots=True)
class MlpConfig(ConnectorConfig):
    kind: str = "mlp2x_gelu"
    """linear; mlpNx_gelu: N linear layers with exact GELU between them; mlpNx_resMx_gelu: and M residual blocks."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ConfigError(
                f"connector 'mlp', option 'kind': '{self.kind}' is none of linear, mlpNx_gelu and mlpNx_resMx_gelu "
                f"(N, M = 1, 2, …)"
            )

    @property
    def layers(self) -> int:
        """Number of linear layers; 0 for a kind that does not exist."""
        return self._depths[0]

    @property
    def residual_blocks(self) -> int:
        """Number of residual blocks behind them."""
        return self._depths[1]

    @property
    def _depths(self) -> tuple[int, int]:
        if self.kind == "linear":
            return 1, 0
        found = re.fullmatch(r"mlp(\d+)x(?:_res(\d+)x)?_gelu", self.kind)
        return (int(found[1]), int(found[2] or 0)) if found else (0, 0)

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
        layers += [ResidualBlock(out_width) for _ in range(config.residual_blocks)]
        self.layers = nn.Sequential(*layers)

    def project(self, features: Features) -> Float[Tensor, "V out"]:
        return self.layers(features.tokens_ND)

    def native(self, to: str) -> NativeProjector:
        """Two linear layers are the projector of LLaVA and LLaVA-NeXT; another number of them is not."""
        if to not in ("llava", "llava_next"):
            return super().native(to)
        if self.config.kind != "mlp2x_gelu":
            raise ExportError(
                f"connector 'mlp' of the kind '{self.config.kind}' is not LLaVA's projector, which is 'mlp2x_gelu'"
            )
        names = {"layers.0": "linear_1", "layers.2": "linear_2"}
        state = {
            names[name.rpartition(".")[0]] + "." + name.rpartition(".")[2]: x for name, x in self.state_dict().items()
        }
        return NativeProjector({"projector_hidden_act": "gelu", "multimodal_projector_bias": True}, state)

    def convert_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """LLaVA's and LLaVA-NeXT's `mm_projector`, that of transformers' Llava and Mllama, Dragonfly's linear layer."""
        return renamed(
            state,
            {
                r"(?:mm_projector|multi_modal_projector|vision_embed_tokens)\.(weight|bias)": r"layers.0.\1",
                r"multi_modal_projector\.linear_1\.(.+)": r"layers.0.\1",
                r"multi_modal_projector\.linear_2\.(.+)": r"layers.2.\1",
                r"mm_projector\.(\d+)\.pre_norm\.(.+)": r"layers.\1.norm.\2",
                r"mm_projector\.(\d+)\.proj\.(.+)": r"layers.\1.layers.\2",
                r"mm_projector\.(\d+)\.(weight|bias)": r"layers.\1.\2",
            },
        )


class ResidualBlock(nn.Module):
    """y + Linear(GELU(Linear(y))) with y = LN(x): what is added to is the normed input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        y_ND = self.norm(x_ND)
        return y_ND + self.layers(y_ND)
