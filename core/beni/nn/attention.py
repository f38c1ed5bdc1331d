"""Exact attention over packed rows, for self- and cross-attention, and its registration with transformers.

`torch.compile` leaves the two functions that follow a plan as they are: the number of its buckets changes from row to
row, and with it their graph would.

Shapes: T positions of the row, H heads, K head width, B trees of a bucket, L slots of a tree, S slots of all
buckets, M memory slots or keys, G key heads.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from beni.errors import IncompatiblePartsError
from beni.nn import bf16
from beni.nn.bf16 import Bf16Attention, Piece, keys, queries
from beni.nn.looks import attention_weights, listening
from beni.nn.plan import CrossPlan, RowPlan

ATTENTION = "beni"
"""The attention implementation under which beni's function is registered with transformers."""

_UNDERSTOOD = {"position_ids", "use_cache", "output_attentions", "cache_position", "logits_to_keep"}
"""Arguments that may reach the attention function and do not change what it must compute."""
_IGNORED_PREFIXES = ("fusion", "output_")


@torch.compiler.disable
def packed_attention(
    q_THK: Float[Tensor, "T H K"],
    k_TGK: Float[Tensor, "T G K"],
    v_TGK: Float[Tensor, "T G K"],
    plan: RowPlan,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "T H K"]:
    """Attention in which each segment of the row sees itself causally and its ancestors wholly.

    Args:
        q_THK, k_TGK, v_TGK: queries, keys, values of one row; G key heads, each shared by H / G query heads.
        plan: the row's plan.
        scale: of the scores; by default 1/sqrt(K).
        window: sliding window in positions, or None.
        softcap: scores become softcap·tanh(scores/softcap) (Gemma 2), or None.
        dropout: probability with which an attention weight is dropped (GPT-2 in training).
    """
    buckets = ((*bucket.index_BL.shape, bucket.mask_B1LL) for bucket in plan.within(window))
    pieces = [Piece(trees, slots, slots, mask) for trees, slots, mask in buckets]
    q_SHK, k_SGK, v_SGK = (_ToSlots.apply(x, plan.index_S, plan.slot_T) for x in (q_THK, k_TGK, v_TGK))
    return _FromSlots.apply(_attend_pieces(q_SHK, k_SGK, v_SGK, pieces, scale, softcap, dropout), plan.slot_T)


@torch.compiler.disable
def cross_attention(
    q_THK: Float[Tensor, "T H K"],
    k_MGK: Float[Tensor, "M G K"],
    v_MGK: Float[Tensor, "M G K"],
    plan: CrossPlan,
    scale: float | None = None,
) -> Float[Tensor, "T H K"]:
    """Attention of text positions to their slices of the visual memory; exactly zero where the slice is empty.

    G key heads are each shared by H / G query heads.
    """
    if listener := listening():
        listener.memory.append(_memory_weights(q_THK.detach(), k_MGK.detach(), plan, scale, listener.text_A))
    pieces = [Piece(len(index), index.shape[1], memory.shape[1], mask) for index, memory, mask in plan.buckets]
    out_SHK = _attend_pieces(q_THK[plan.index_S], k_MGK[plan.memory_N], v_MGK[plan.memory_N], pieces, scale)
    # all three stay in the graph of a batch in which nobody reads anything: every rank must send its gradients
    unread = 0 * (q_THK[:1] + (k_MGK[:1] + v_MGK[:1]).sum())
    return torch.cat([out_SHK, unread])[plan.slot_T]


def _memory_weights(
    q_THK: Tensor, k_MGK: Tensor, plan: CrossPlan, scale: float | None, text_A: Tensor
) -> Float[Tensor, "A M"]:
    """What some positions of a single row read in `cross_attention`: mean over heads."""
    text_A = text_A.to(q_THK.device)
    read_AM = q_THK.new_zeros(len(text_A), len(k_MGK), dtype=torch.float32)
    for _, memory_BM, mask_B1LM in plan.buckets:  # of a single row there is one, or none where nothing is read
        [memory_M] = memory_BM
        q = rearrange(q_THK[text_A], "A H K -> 1 H A K")
        k = rearrange(k_MGK[memory_M], "M G K -> 1 G M K")
        read_AM[:, memory_M] = attention_weights(q, k, mask_B1LM[:, :, text_A], scale)[0].mean(0)
    return (read_AM * plan.sees_T[text_A, None]).detach().cpu()


def _attend_pieces(
    q_SHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    pieces: Sequence[Piece],
    scale: float | None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "S H K"]:
    """Attention of pieces whose queries and keys stand one behind the other."""
    if softcap is None and not dropout and bf16.serves(q_SHK, v_NGK):
        return Bf16Attention.apply(q_SHK, k_NGK, v_NGK, pieces, scale)
    each = zip(pieces, queries(q_SHK, pieces), keys(k_NGK, pieces), keys(v_NGK, pieces), strict=True)
    outputs = [
        _attend(q, k, v, piece.mask_B1LM, scale, softcap, dropout, piece.mask_B1LM is None) for piece, q, k, v in each
    ]
    return torch.cat([rearrange(out, "B H L K -> (B L) H K") for out in outputs] or [q_SHK])


def _attend(
    q_BHLK: Tensor,
    k_BGMK: Tensor,
    v_BGMK: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
    dropout: float,
    causal: bool,
) -> Tensor:
    shared = q_BHLK.shape[1] // k_BGMK.shape[1]
    if softcap is None:
        return F.scaled_dot_product_attention(
            q_BHLK,
            k_BGMK,
            v_BGMK,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal,
            scale=scale,
            enable_gqa=shared > 1,
        )
    k_BGMK, v_BGMK = (x.repeat_interleave(shared, dim=1) for x in (k_BGMK, v_BGMK))
    scores = q_BHLK @ k_BGMK.transpose(-1, -2) * (scale if scale is not None else q_BHLK.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # rows of padding see nothing: -inf gives NaN
    return F.dropout(scores.float().softmax(-1), dropout).to(v_BGMK.dtype) @ v_BGMK


class _ToSlots(torch.autograd.Function):
    """Puts positions into the S slots of all buckets.

    A position has one slot, and padding gets no gradient: so gradients come back by another gather, where autograd
    would add them up row by row.
    """

    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, index_S: Tensor, slot_T: Tensor) -> Tensor:
        ctx.save_for_backward(slot_T)
        return x_THK[index_S]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SHK: Tensor) -> tuple[Tensor, None, None]:
        [slot_T] = ctx.saved_tensors
        return grad_SHK[slot_T], None, None


class _FromSlots(torch.autograd.Function):
    """Takes positions out of the slots of buckets; padding, which nobody takes, gets zero for its gradient."""

    @staticmethod
    def forward(ctx: Any, x_SHK: Tensor, slot_T: Tensor) -> Tensor:
        ctx.save_for_backward(slot_T)
        ctx.slots = len(x_SHK)
        return x_SHK[slot_T]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THK: Tensor) -> tuple[Tensor, None]:
        [slot_T] = ctx.saved_tensors
        return grad_THK.new_zeros(ctx.slots, *grad_THK.shape[1:]).index_copy_(0, slot_T, grad_THK), None


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
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: exact packed attention with a plan, the mask it made without.

    Raises:
        IncompatiblePartsError: the model passes something that changes its attention (sinks, a position bias) and that
            is not computed here.
    """
    unknown = sorted(
        name
        for name, given in kwargs.items()
        if given is not None and name not in _UNDERSTOOD and not name.startswith(_IGNORED_PREFIXES)
    )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if segments is not None and not causal:
        unknown.append("non-causal attention")
    if unknown:
        raise IncompatiblePartsError(
            f"{type(module).__name__} asks its attention for {', '.join(unknown)}, which beni does not compute: "
            f"results would be silently wrong, so this language model cannot be used"
        )
    if segments is not None:
        q_THK, k_TGK, v_TGK = (x[0].transpose(0, 1) for x in (query, key, value))
        return packed_attention(q_THK, k_TGK, v_TGK, segments, scaling, sliding_window, softcap, dropout)[None], None
    causal = causal and attention_mask is None and query.shape[2] > 1
    if listener := listening():
        listener.itself.append(
            _row_weights(query, key, attention_mask, scaling, softcap, causal, listener.text_A.to(query.device))
        )
    if softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal
        )
    out = _attend(query, key, value, attention_mask, scaling, softcap, dropout, causal)
    return out.transpose(1, 2).contiguous(), None


def _row_weights(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
    causal: bool,
    text_A: Tensor,
) -> Float[Tensor, "A T"]:
    """What some positions of a single row read of it: mean over heads."""
    length = q_BHTK.shape[2]
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=q_BHTK.device).tril()
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], length, mask.shape[-1])[..., text_A, :]
    return attention_weights(q_BHTK[:, :, text_A], k_BGTK, mask, scale, softcap)[0].mean(0).detach().cpu()


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _transformers_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
