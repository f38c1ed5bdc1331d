"""Gated cross-attention: blocks between the LLM's layers read the images, the text holds one placeholder each.

References: `flamingo` mlfoundations/open_flamingo, open_flamingo/src/helpers.py (GatedCrossAttentionBlock); `mllama`
transformers, models/mllama/modeling_mllama.py (MllamaCrossAttentionDecoderLayer), with Meta's rule that text which sees
no image gets nothing from the attention (transformers lets it attend to all images). OpenFlamingo lets text in front
of the first image read images that come later when it attends to all of them; here it reads nothing.

Shapes: B rows, T positions, D the LLM's width, M visual memory, E its width, H heads, G key heads, K head width.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.config import at_least_one
from beni.errors import ConfigError
from beni.interfaces import Fusion, FusionConfig, FusionContext, Insert, LLMSpec, Reads, VisualSpec
from beni.nn.attention import cross_attention
from beni.nn.blocks import GeluFeedForward, SwiGlu
from beni.sample import IMAGE_MARK
from beni.types import Grid, ImageLayout
from beni.weights import renamed


@dataclass(frozen=True, slots=True)
class CrossAttentionConfig(FusionConfig):
    variant: Literal["flamingo", "mllama"] = "flamingo"
    """flamingo: LayerNorm, GELU feed-forward; mllama: RMSNorm, also of queries and keys, GQA, SwiGLU."""
    every: int = 1
    """A block before every n-th decoder layer: before layer i where i + 1 is divisible by n."""
    layers: tuple[int, ...] = ()
    """The decoder layers that get a block before them, counted from 0, instead of every n-th."""
    images: Literal["variant", "last", "run", "all"] = "variant"
    """What a token reads. last: the last image at or before it; run: with it the images that precede it without text
    between; all: all images at or before it; variant: as the reference, last for flamingo and run for mllama."""
    heads: int = 4
    """Attention heads; 8 in Flamingo, 32 in mllama."""
    kv_heads: int = 2
    """Key and value heads, mllama only; divides `heads`. 8 in the reference."""
    head_width: int = 32
    """Channels per head; 64 in Flamingo, 128 in mllama."""
    ff_multiple: float = 4.0
    """Width of the feed-forward in multiples of the LLM's width; 3.5 in mllama."""

    new_tokens: ClassVar[tuple[str, ...]] = (IMAGE_MARK,)

    def __post_init__(self) -> None:
        at_least_one(self, "fusion", "xattn", "every", "heads", "kv_heads", "head_width", "ff_multiple")
        if self.variant == "mllama" and self.heads % self.kv_heads:
            raise ConfigError(f"fusion 'xattn': --fusion.kv-heads {self.kv_heads} does not divide heads {self.heads}")
        if len(set(self.layers)) < len(self.layers) or any(layer < 0 for layer in self.layers):
            raise ConfigError(f"fusion 'xattn': --fusion.layers {self.layers} must be different numbers from 0")

    @property
    def reads(self) -> Reads:
        if self.images == "variant":
            return "last" if self.variant == "flamingo" else "run"
        return self.images

    def before(self, layers: int) -> tuple[int, ...]:
        """The decoder layers, of so many, that have a block before them."""
        return self.layers or tuple(index for index in range(layers) if (index + 1) % self.every == 0)

    def spell(self, layout: ImageLayout, shapes: Sequence[Grid | int]) -> list[str | int]:
        return [IMAGE_MARK]

    def visual_width(self, llm: LLMSpec, encoder_width: int) -> int:
        """Flamingo reads visual tokens in the encoder's width, mllama has them projected to the LLM's."""
        return encoder_width if self.variant == "flamingo" else llm.width


class CrossAttention(Fusion):
    """Gates start at zero: a fresh model computes exactly what its LLM computes."""

    beni_api = 1
    Config = CrossAttentionConfig

    def __init__(self, config: Any, llm: LLMSpec, visual: VisualSpec) -> None:
        super().__init__(config, llm, visual)
        block = FlamingoBlock if config.variant == "flamingo" else MllamaBlock
        self.layers = nn.ModuleDict(
            {str(index): block(config, llm.width, visual.width) for index in config.before(llm.layers)}
        )

    def embed(
        self, embeds_TD: Float[Tensor, "T D"], visual_VE: Float[Tensor, "V E"], at_V: Int[Tensor, " V"]
    ) -> Float[Tensor, "T D"]:
        return embeds_TD

    def inserts(self) -> Mapping[int, Insert]:
        return {int(index): Insert(block) for index, block in self.layers.items()}

    def convert_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """OpenFlamingo's blocks, or the cross-attention layers of transformers' Mllama."""
        return renamed(state, FLAMINGO if self.config.variant == "flamingo" else mllama_names(state))

    @classmethod
    def check(cls, config: Any, llm: LLMSpec, visual: VisualSpec) -> None:
        if not config.layers and config.every > llm.layers:
            raise ConfigError(
                f"fusion 'xattn' wants a block before every {config.every}th layer, but the LLM has {llm.layers}: "
                f"there would be none; set --fusion.every to {llm.layers} or less"
            )
        if config.layers and max(config.layers) >= llm.layers:
            raise ConfigError(
                f"fusion 'xattn' wants a block before layer {max(config.layers)}, but the LLM's {llm.layers} layers "
                f"are numbered 0 to {llm.layers - 1}: change --fusion.layers"
            )


FLAMINGO = {
    rf"{block}\.{inside}(.+)": r"layers.\1.\2"
    for block in (r"gated_cross_attn_layers\.(\d+)", r"(\d+)\.gated_cross_attn_layer")
    for inside in (r"attn\.", "")
}
"""OpenFlamingo's names, of blocks by themselves and of blocks in decoder layers; attention is a module of its own."""


def mllama_names(names: Iterable[str]) -> dict[str, str]:
    """Mllama's names: its cross-attention layers count among all of its layers, here they stand before other layers."""
    found = (re.fullmatch(r"(?:.*\.)?layers\.(\d+)\.cross_attn\..+", name) for name in names)
    rules = {}
    for before, index in enumerate(sorted({int(match[1]) for match in found if match})):
        theirs, ours = rf"layers\.{index}\.", f"layers.{index - before}."
        rules[rf"{theirs}cross_attn_attn_gate"] = f"{ours}attn_gate"
        rules[rf"{theirs}cross_attn_mlp_gate"] = f"{ours}ff_gate"
        rules[rf"{theirs}(?:cross_attn\.)?(.+)"] = rf"{ours}\1"
    return rules


class FlamingoBlock(nn.Module):
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


class MllamaBlock(nn.Module):
    """x + tanh(g_attn)·Attn(RMS(x), memory), then x + tanh(g_ff)·SwiGLU(RMS(x)) where the position sees an image."""

    EPS: ClassVar[float] = 1e-5
    """Of all norms (rms_norm_eps of the published models)."""

    def __init__(self, config: CrossAttentionConfig, width: int, visual_width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.input_layernorm = nn.RMSNorm(width, eps=self.EPS)
        self.q_proj = nn.Linear(width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(visual_width, config.kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(visual_width, config.kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, width, bias=False)
        self.q_norm = nn.RMSNorm(config.head_width, eps=self.EPS)
        self.k_norm = nn.RMSNorm(config.head_width, eps=self.EPS)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.post_attention_layernorm = nn.RMSNorm(width, eps=self.EPS)
        self.mlp = SwiGlu(width, int(config.ff_multiple * width), width)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTD: Float[Tensor, "B T D"], context: FusionContext) -> Float[Tensor, "B T D"]:
        rows = len(x_BTD)
        q_THK = self.q_norm(rearrange(self.q_proj(self.input_layernorm(x_BTD)), "b t (h k) -> (b t) h k", h=self.heads))
        k_MGK = self.k_norm(rearrange(self.k_proj(context.memory_MD), "m (g k) -> m g k", g=self.kv_heads))
        v_MGK = rearrange(self.v_proj(context.memory_MD), "m (g k) -> m g k", g=self.kv_heads)
        read_THK = cross_attention(q_THK, k_MGK, v_MGK, context.plan)
        x_BTD = x_BTD + self.attn_gate.tanh() * self.o_proj(rearrange(read_THK, "(b t) h k -> b t (h k)", b=rows))
        sees_BT1 = rearrange(context.plan.sees_T, "(b t) -> b t 1", b=rows)
        return x_BTD + self.ff_gate.tanh() * (sees_BT1 * self.mlp(self.post_attention_layernorm(x_BTD)))
