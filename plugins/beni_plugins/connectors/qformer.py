"""Q-Former (BLIP-2): learned queries read a crop through a BERT whose layers, every few, attend to the crop's tokens.

Reference: Li et al. 2023, arXiv 2301.12597; salesforce/LAVIS, lavis/models/blip2_models/Qformer.py. The transformer is
that of transformers (models/blip_2/modeling_blip_2.py, Blip2QFormerModel), without dropout. MiniGPT-4 uses it, too.
Both norm the encoder's tokens first (`ln_vision`), which here is the encoder's part: `--encoder.post-norm`, `norm`.

Shapes: C crops, N tokens of a crop, Q queries, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from beni.config import at_least_one
from beni.errors import ConfigError
from beni.interfaces import Connector, ConnectorConfig
from beni.types import EncoderSpec, Features, Grid
from beni.weights import renamed

INIT_STD = 0.02
"""Standard deviation of the queries at the start, as in LAVIS; transformers starts them at zero, all alike."""


@dataclass(frozen=True, slots=True)
class QFormerConfig(ConnectorConfig):
    num_queries: int = 32
    """Visual tokens per crop; as in BLIP-2."""
    width: int = 128
    """Channels of the queries; 768 in the reference."""
    depth: int = 2
    """Layers; 12 in the reference."""
    heads: int = 4
    """Attention heads; 12 in the reference."""
    ff_multiple: int = 4
    """Width of the feed-forward in multiples of `width`."""
    cross_every: int = 2
    """The first and then every n-th layer reads the crop; as in the reference."""

    def __post_init__(self) -> None:
        at_least_one(
            self, "connector", "qformer", "num_queries", "width", "depth", "heads", "ff_multiple", "cross_every"
        )
        if self.width % self.heads:
            raise ConfigError(f"connector 'qformer': heads {self.heads} do not divide --connector.width {self.width}")

    def out_grid(self, grid: Grid) -> int:
        return self.num_queries


class QFormer(Connector):
    """Queries, the transformer, and a linear layer to the width that the fusion wants."""

    beni_api = 1
    Config = QFormerConfig

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.query_QD = nn.Parameter(torch.randn(config.num_queries, config.width) * INIT_STD)
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=config.ff_multiple * config.width,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                cross_attention_frequency=config.cross_every,
                encoder_hidden_size=self.in_width,
            )
        )
        self.proj = nn.Linear(config.width, out_width)

    def project(self, features: Features) -> Float[Tensor, "V out"]:
        read = [
            self.qformer(
                query_embeds=self.query_QD.expand(len(x_CND), -1, -1), encoder_hidden_states=x_CND
            ).last_hidden_state
            for _, x_CND in features.runs()
        ]
        return self.proj(torch.cat(read).flatten(0, 1))

    def convert_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """BLIP-2 of transformers; LAVIS and MiniGPT-4, whose words and text layers are left alone."""
        bert = r"Qformer\.bert\.encoder\.layer\.(\d+)"
        found = renamed(
            state,
            {
                r"query_tokens": "query_QD",
                r"Qformer\.bert\.embeddings\.LayerNorm\.(.+)": r"qformer.layernorm.\1",
                rf"{bert}\.((?:cross)?attention)\.self\.(.+)": r"qformer.encoder.layer.\1.\2.attention.\3",
                rf"{bert}\.((?:(?:cross)?attention\.)?(?:output|\w+_query)\..+)": r"qformer.encoder.layer.\1.\2",
                r"qformer\.((?:layernorm|encoder)\..+)": r"qformer.\1",
                r"(?:language_projection|(?:llama|opt|t5)_proj)\.(.+)": r"proj.\1",
            },
        )
        return {name: value[0] if name == "query_QD" else value for name, value in found.items()}

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.qformer.encoder.layer)
