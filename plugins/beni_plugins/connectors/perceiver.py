"""Perceiver resamplers: a fixed number of learned latents attends to however many tokens a crop has.

References: `flamingo` mlfoundations/open_flamingo, open_flamingo/src/helpers.py (PerceiverResampler);
`idefics2` transformers, models/idefics2/modeling_idefics2.py (Idefics2Connector). The latter starts from latents of
ones, so that all of them stay the same vector for ever; here they start different in both variants. Flamingo's start
with standard deviation 1, which drowns what they read from the image in what they are; here it is 0.02 in both, and
the norm before the attention keeps the queries apart.

Shapes: C crops, N tokens of a crop, Q latents, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.config import at_least_one
from beni.errors import ConfigError
from beni.interfaces import Connector, ConnectorConfig
from beni.nn.blocks import GeluFeedForward, SwiGlu, attend, attend_weights
from beni.nn.looks import listening
from beni.types import EncoderSpec, Features, Grid
from beni.weights import renamed

INIT_STD = 0.02
"""Standard deviation of the latents at the start."""


@dataclass(frozen=True, slots=True)
class PerceiverConfig(ConnectorConfig):
    variant: Literal["flamingo", "idefics2"] = "flamingo"
    """flamingo: LayerNorm and GELU in the encoder's width; idefics2: projected first, RMSNorm, SwiGLU and GQA."""
    num_latents: int = 32
    """Visual tokens per crop; 64 in the references."""
    depth: int = 2
    """Layers."""
    heads: int = 4
    """Attention heads; 8 in Flamingo, 16 in idefics2."""
    kv_heads: int = 2
    """Key and value heads, idefics2 only; divides `heads`."""
    head_width: int = 32
    """Channels per head; 64 in Flamingo, 96 in idefics2."""
    ff_multiple: int = 4
    """Width of the feed-forward in multiples of the latents' width."""
    projection_width: int = 0
    """Hidden width of idefics2's modality projection; 0: four times the width the fusion wants."""

    def __post_init__(self) -> None:
        at_least_one(
            self, "connector", "perceiver", "num_latents", "depth", "heads", "kv_heads", "head_width", "ff_multiple"
        )
        if self.variant == "idefics2" and self.heads % self.kv_heads:
            raise ConfigError(
                f"connector 'perceiver': --connector.kv-heads {self.kv_heads} does not divide heads {self.heads}"
            )

    def out_grid(self, grid: Grid) -> int:
        return self.num_latents


class Perceiver(Connector):
    """Latents that read each crop by itself."""

    beni_api = 1
    Config = PerceiverConfig

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.resampler: nn.Module
        if config.variant == "flamingo":
            self.before: nn.Module = nn.Identity()
            self.resampler = FlamingoResampler(config, self.in_width)
            self.after = nn.Identity() if out_width == self.in_width else nn.Linear(self.in_width, out_width)
        else:
            self.before = SwiGlu(self.in_width, config.projection_width or 4 * out_width, out_width)
            self.resampler = Idefics2Resampler(config, out_width)
            self.after = nn.Identity()

    def project(self, features: Features) -> Float[Tensor, "V out"]:
        prepared = Features(self.before(features.tokens_ND), features.grids)
        latents = [self.resampler(x_CND) for _, x_CND in prepared.runs()]
        return self.after(torch.cat(latents).flatten(0, 1))

    def convert_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """OpenFlamingo's `perceiver`, or the `connector` of transformers' Idefics2."""
        if self.config.variant == "flamingo":
            return renamed(state, {r"perceiver\.(.+)": r"resampler.\1"})
        return renamed(
            state,
            {
                r"modality_projection\.(.+)": r"before.\1",
                r"perceiver_resampler\.(layers\.\d+)\.self_attn\.(.+)": r"resampler.\1.\2",
                r"perceiver_resampler\.(.+)": r"resampler.\1",
            },
        )


class FlamingoResampler(nn.Module):
    """Latents of the encoder's width; each layer attends to [media, latents], both LayerNormed, then a GELU FFN."""

    def __init__(self, config: PerceiverConfig, width: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config.num_latents, width) * INIT_STD)
        self.layers = nn.ModuleList(
            nn.ModuleList([FlamingoAttention(config, width), GeluFeedForward(width, config.ff_multiple)])
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x_CND: Float[Tensor, "C N D"]) -> Float[Tensor, "C Q D"]:
        latents_CQD = self.latents.expand(len(x_CND), -1, -1)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            latents_CQD = latents_CQD + attention(x_CND, latents_CQD)
            latents_CQD = latents_CQD + feed_forward(latents_CQD)
        return self.norm(latents_CQD)


class FlamingoAttention(nn.Module):
    def __init__(self, config: PerceiverConfig, width: int) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x_CND: Float[Tensor, "C N D"], latents_CQD: Float[Tensor, "C Q D"]) -> Float[Tensor, "C Q D"]:
        latents_CQD = self.norm_latents(latents_CQD)
        keys = torch.cat([self.norm_media(x_CND), latents_CQD], dim=1)
        k, v = self.to_kv(keys).chunk(2, dim=-1)
        q = self.to_q(latents_CQD)
        if listener := listening():
            listener.crops(self, attend_weights(q, k, self.heads)[..., : x_CND.shape[1]])
        return self.to_out(attend(q, k, v, self.heads))


class Idefics2Resampler(nn.Module):
    """Latents of the LLM's width; each layer attends to [context, latents] with GQA, RMSNorm and SwiGLU throughout."""

    def __init__(self, config: PerceiverConfig, width: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config.num_latents, width) * INIT_STD)
        self.layers = nn.ModuleList(Idefics2Layer(config, width) for _ in range(config.depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, context_CND: Float[Tensor, "C N D"]) -> Float[Tensor, "C Q D"]:
        latents_CQD = self.latents.expand(len(context_CND), -1, -1)
        for layer in self.layers:
            latents_CQD = layer(context_CND, latents_CQD)
        return self.norm(latents_CQD)


class Idefics2Layer(nn.Module):
    def __init__(self, config: PerceiverConfig, width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.input_latents_norm = nn.RMSNorm(width, eps=1e-6)
        self.input_context_norm = nn.RMSNorm(width, eps=1e-6)
        self.q_proj = nn.Linear(width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(width, config.kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(width, config.kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, width, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-6)
        self.mlp = SwiGlu(width, config.ff_multiple * width, width)

    def forward(
        self, context_CND: Float[Tensor, "C N D"], latents_CQD: Float[Tensor, "C Q D"]
    ) -> Float[Tensor, "C Q D"]:
        q_CQD = self.input_latents_norm(latents_CQD)
        keys = torch.cat([self.input_context_norm(context_CND), q_CQD], dim=1)
        q, k, v = self.q_proj(q_CQD), self.k_proj(keys), self.v_proj(keys)
        if listener := listening():
            listener.crops(self, attend_weights(q, k, self.heads, self.kv_heads)[..., : context_CND.shape[1]])
        out = attend(q, k, v, self.heads, self.kv_heads)
        latents_CQD = latents_CQD + self.o_proj(out)
        return latents_CQD + self.mlp(self.post_attention_layernorm(latents_CQD))
