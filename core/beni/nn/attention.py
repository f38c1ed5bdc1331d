"""Exact attention over packed rows, for self- and cross-attention, and its registration with transformers.

Shapes: T positions of the row, H heads, K head width, B trees of a bucket, L slots of a tree, M memory slots.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from beni.nn.plan import CrossPlan, RowPlan

ATTENTION = "beni"
"""The attention implementation under which beni's function is registered with transformers."""

_UNDERSTOOD = {"position_ids", "use_cache", "is_causal", "output_attentions", "cache_position", "logits_to_keep"}
"""Arguments that may reach the attention function and do not change what it must compute."""
_IGNORED_PREFIXES = ("fusion", "output_")


def packed_attention(
    q_THK: Float[Tensor, "T H K"],
    k_TGK: Float[Tensor, "T G K"],
    v_TGK: Float[Tensor, "T G K"],
    plan: RowPlan,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "T H K"]:
    """Attention in which each segment of the row sees itself causally and its ancestors wholly.

    Args:
        q_THK, k_TGK, v_TGK: queries, keys, values of one row; G key heads, each shared by H / G query heads.
        plan: the row's plan.
        scale: of the scores; by default 1/sqrt(K).
        window: sliding window in positions, or None.
        softcap: scores become softcap·tanh(scores/softcap) (Gemma 2), or None.
    """
    outputs = []
    for bucket in plan.within(window):
        q, k, v = (rearrange(x[bucket.index_BL], "B L H K -> B H L K") for x in (q_THK, k_TGK, v_TGK))
        out = _attend(q, k, v, bucket.mask_B1LL, scale, softcap, causal=bucket.mask_B1LL is None)
        outputs.append(rearrange(out, "B H L K -> (B L) H K"))
    return torch.cat(outputs)[plan.slot_T]


def cross_attention(
    q_THK: Float[Tensor, "T H K"],
    k_MHK: Float[Tensor, "M H K"],
    v_MHK: Float[Tensor, "M H K"],
    plan: CrossPlan,
    scale: float | None = None,
) -> Float[Tensor, "T H K"]:
    """Attention of text positions to their slices of the visual memory; exactly zero where the slice is empty."""
    outputs = []
    for index_BL, memory_BM, mask_B1LM in plan.buckets:
        q = rearrange(q_THK[index_BL], "B L H K -> B H L K")
        k, v = (rearrange(x[memory_BM], "B M H K -> B H M K") for x in (k_MHK, v_MHK))
        out = _attend(q, k, v, mask_B1LM, scale, softcap=None, causal=False)
        outputs.append(rearrange(out, "B H L K -> (B L) H K"))
    # keys and values stay in the graph of a batch in which nobody reads them: every rank must send its gradients
    unread = q_THK.new_zeros(1, *q_THK.shape[1:]) + 0 * (k_MHK[:1] + v_MHK[:1]).sum()
    return torch.cat([*outputs, unread])[plan.slot_T]


def _attend(
    q_BHLK: Tensor,
    k_BGMK: Tensor,
    v_BGMK: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
    causal: bool,
) -> Tensor:
    shared = q_BHLK.shape[1] != k_BGMK.shape[1]
    if softcap is None:
        return F.scaled_dot_product_attention(
            q_BHLK, k_BGMK, v_BGMK, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=shared
        )
    if shared:
        k_BGMK, v_BGMK = (x.repeat_interleave(q_BHLK.shape[1] // x.shape[1], dim=1) for x in (k_BGMK, v_BGMK))
    scores = q_BHLK @ k_BGMK.transpose(-1, -2) * (scale if scale is not None else q_BHLK.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.float().softmax(-1).to(v_BGMK.dtype) @ v_BGMK


def _transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: RowPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: exact packed attention with a plan, its own SDPA path without.

    Raises:
        ValueError: the model passes something that changes its attention (sinks, position bias, dropout) and that
            packed attention does not compute.
    """
    if segments is None:
        if softcap is not None:
            raise ValueError("attention soft-capping outside packed rows needs attn_implementation='eager'")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    unknown = {
        name
        for name, value_ in kwargs.items()
        if value_ is not None and name not in _UNDERSTOOD and not name.startswith(_IGNORED_PREFIXES)
    }
    if dropout:
        unknown.add("dropout")
    if unknown:
        raise ValueError(
            f"{type(module).__name__} asks its attention for {', '.join(sorted(unknown))}, which packed rows do not "
            f"support: its results would be silently wrong"
        )
    q_THK, k_TGK, v_TGK = (x[0].transpose(0, 1) for x in (query, key, value))
    out = packed_attention(q_THK, k_TGK, v_TGK, segments, scaling, sliding_window, softcap)
    return out[None], None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _transformers_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
