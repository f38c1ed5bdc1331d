"""Gated cross-attention (Flamingo): blocks between the LLM's layers read the images, text holds one placeholder each.

Reference: mlfoundations/open_flamingo, open_flamingo/src/helpers.py (GatedCrossAttentionBlock) with
`only_attend_immediate_media=True`: a token reads the last image at or before it, text before any image reads nothing.

Shapes: B rows, T positions, D the LLM's width, M visual memory, E its width, H heads, K head width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.errors import ConfigError
from beni.interfaces import Fusion, FusionConfig, FusionContext, Insert, LLMSpec
from beni.nn.attention import cross_attention
from beni.nn.blocks import GeluFeedForward
from beni.sample import IMAGE_MARK
from beni.types import Grid, ImageLayout


@dataclass(frozen=True, slots=True)
class CrossAttentionConfig(FusionConfig):
    every: int = 1
    """A block before every n-th decoder layer: before layer i where i + 1 is divisible by n."""
    heads: int = 4
    """Attention heads; 8 in the reference."""
    head_width: int = 32
    """Channels per head; 64 in the reference."""
    ff_multiple: int = 4
    """Width of the feed-forward in multiples of the LLM's width."""

    new_tokens: ClassVar[tuple[str, ...]] = (IMAGE_MARK,)
    uses_context: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"fusion 'xattn', option 'every': {self.every} is not a positive number of layers")

    def spell(self, layout: ImageLayout, shapes: Sequence[Grid | int]) -> list[str | int]:
        return [IMAGE_MARK]

    def visual_width(self, llm: LLMSpec, encoder_width: int) -> int:
        return encoder_width


class CrossAttention(Fusion):
    """Gates start at zero: a fresh model computes exactly what its LLM computes."""

    beni_api = 1
    Config = CrossAttentionConfig

    def __init__(self, config: Any, llm: LLMSpec, visual_width: int) -> None:
        super().__init__(config, llm, visual_width)
        self.layers = nn.ModuleDict(
            {
                str(index): GatedCrossAttentionBlock(config, llm.width, visual_width)
                for index in range(llm.layers)
                if (index + 1) % config.every == 0
            }
        )

    def embed(
        self, embeds_TD: Float[Tensor, "T D"], visual_VE: Float[Tensor, "V E"], at_V: Int[Tensor, " V"]
    ) -> Float[Tensor, "T D"]:
        return embeds_TD

    def inserts(self) -> Mapping[int, Insert]:
        return {int(index): Insert(block) for index, block in self.layers.items()}

    @classmethod
    def check(cls, config: Any, llm: LLMSpec) -> None:
        if config.every > llm.layers:
            raise ConfigError(
                f"fusion 'xattn' wants a block before every {config.every}th layer, but the LLM has {llm.layers}: "
                f"there would be none; set --fusion.every to {llm.layers} or less"
            )


class GatedCrossAttentionBlock(nn.Module):
    """x + tanh(g_attn)·Attn(LN(x), memory), then x + tanh(g_ff)·FF(x); no biases outside the norms."""

    def __init__(self, config: CrossAttentionConfig, width: int, visual_width: int) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(visual_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = GeluFeedForward(width, config.ff_multiple)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTD: Float[Tensor, "B T D"], context: FusionContext) -> Float[Tensor, "B T D"]:
        q_THK = rearrange(self.to_q(self.norm(x_BTD)), "b t (h k) -> (b t) h k", h=self.heads)
        k_MHK, v_MHK = rearrange(self.to_kv(context.memory_MD), "m (two h k) -> two m h k", two=2, h=self.heads)
        read_THK = cross_attention(q_THK, k_MHK, v_MHK, context.plan)
        read_BTD = self.to_out(rearrange(read_THK, "(b t) h k -> b t (h k)", b=len(x_BTD)))
        x_BTD = x_BTD + self.attn_gate.tanh() * read_BTD
        return x_BTD + self.ff_gate.tanh() * self.ff(x_BTD)
