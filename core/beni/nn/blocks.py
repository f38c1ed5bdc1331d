"""Feed-forwards and resampler attention that several parts use.

Shapes: I images, N tokens of an image, Q queries (latents), D width, H heads, K head width.
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from beni.nn.looks import attention_weights


class GeluFeedForward(nn.Sequential):
    """LayerNorm, Linear(D→multiple·D), exact GELU, Linear back; no biases outside the norm (Flamingo's FFN)."""

    def __init__(self, width: int, multiple: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, int(multiple * width), bias=False),
            nn.GELU(),
            nn.Linear(int(multiple * width), width, bias=False),
        )


class SwiGlu(nn.Module):
    """down(silu(gate(x)) · up(x)), no biases (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, in_width: int, hidden: int, out_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(in_width, hidden, bias=False)
        self.up_proj = nn.Linear(in_width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, out_width, bias=False)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def attend(
    q: Float[Tensor, "I Q HK"],
    k: Float[Tensor, "I N GK"],
    v: Float[Tensor, "I N GK"],
    heads: int,
    kv_heads: int | None = None,
) -> Float[Tensor, "I Q HK"]:
    """Full multi-head attention with merged heads; `kv_heads` < `heads` groups queries (GQA)."""
    q, k, v = (
        rearrange(x, "i n (h k) -> i h n k", h=n)
        for x, n in ((q, heads), (k, kv_heads or heads), (v, kv_heads or heads))
    )
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=kv_heads not in (None, heads))
    return rearrange(out, "i h n k -> i n (h k)")


def attend_weights(
    q: Float[Tensor, "I Q HK"], k: Float[Tensor, "I N GK"], heads: int, kv_heads: int | None = None
) -> Float[Tensor, "I H Q N"]:
    """The weights of `attend`, for whoever listens to what is read."""
    q, k = (rearrange(x, "i n (h k) -> i h n k", h=n) for x, n in ((q, heads), (k, kv_heads or heads)))
    return attention_weights(q, k)
