"""PyTorch's fused attention on a CPU in bf16, with its backward pass in fp32, where that kernel is much faster: ten
times for documents of 50 positions, still a little for 800 (PyTorch 2.14, AMX).

Shapes: S queries and N keys of all pieces one behind the other, H heads, G key heads, K head width; of one piece B
groups, L queries and M keys of each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor
from torch.autograd.function import once_differentiable

_ATEN = torch.ops.aten


class Piece(NamedTuple):
    """Groups of queries and of the keys that they alone may see, all groups of one size."""

    groups: int
    queries: int
    """Of a group."""
    keys: int
    """Of a group."""
    mask_B1LM: Bool[Tensor, "B 1 L M"] | None
    """Who sees whom; None means causal."""


def serves(q_SHK: Tensor, v_NGK: Tensor) -> bool:
    """Whether attention of these is faster here than by `scaled_dot_product_attention`."""
    alike = q_SHK.device.type == "cpu" and q_SHK.dtype == v_NGK.dtype == torch.bfloat16
    return alike and q_SHK.shape[-1] == v_NGK.shape[-1] and torch.is_grad_enabled()


class Bf16Attention(torch.autograd.Function):
    """Attention of all pieces. What is widened to fp32, or repeated for the heads that share it, is so once for all."""

    @staticmethod
    def forward(
        ctx: Any, q_SHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, pieces: Sequence[Piece], scale: float | None
    ) -> Tensor:
        out_SHK = torch.empty_like(q_SHK)
        normalisers = []
        k_NHK, v_NHK = (_repeated(x, q_SHK.shape[1]) for x in (k_NGK, v_NGK))
        for piece, q, k, v, out in zip(
            pieces,
            queries(q_SHK, pieces),
            keys(k_NHK, pieces),
            keys(v_NHK, pieces),
            queries(out_SHK, pieces),
            strict=True,
        ):
            found, normaliser = _ATEN._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, **_how(piece, q.dtype, scale)
            )
            out.copy_(found)
            normalisers.append(normaliser)
        ctx.pieces, ctx.scale = pieces, scale
        ctx.save_for_backward(q_SHK, k_NGK, v_NGK, out_SHK, *normalisers)
        return out_SHK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SHK: Tensor) -> tuple[Tensor | None, ...]:
        q_SHK, k_NGK, v_NGK, out_SHK, *normalisers = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in (q_SHK, k_NGK, v_NGK)]
        q_SHK, k_NGK, v_NGK = (x.float() for x in (q_SHK, k_NGK, v_NGK))
        k_NHK, v_NHK = (_repeated(x, q_SHK.shape[1]) for x in (k_NGK, v_NGK))
        asked = [queries(x, ctx.pieces) for x in (grad_SHK.float(), q_SHK, out_SHK.float(), gradients[0])]
        seen = [keys(x, ctx.pieces) for x in (k_NHK, v_NHK, *gradients[1:])]
        for piece, normaliser, (grad, q, out, dq), (k, v, dk, dv) in zip(
            ctx.pieces, normalisers, zip(*asked, strict=True), zip(*seen, strict=True), strict=True
        ):
            how = _how(piece, q.dtype, ctx.scale)
            found = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, q, k, v, out, normaliser, how.pop("dropout_p"), how.pop("is_causal"), **how
            )
            for into, each in zip((dq, dk, dv), found, strict=True):
                into.copy_(each.unflatten(1, (into.shape[1], -1)).sum(2) if each.shape[1] > into.shape[1] else each)
        return (*gradients, None, None)


def queries(x_SHK: Tensor, pieces: Sequence[Piece]) -> list[Tensor]:
    """[B, H, L, K] views of each piece's queries, or of what stands beside them."""
    parts = x_SHK.split([piece.groups * piece.queries for piece in pieces])
    return [rearrange(x, "(B L) H K -> B H L K", B=p.groups) for p, x in zip(pieces, parts, strict=True)]


def keys(x_NHK: Tensor, pieces: Sequence[Piece]) -> list[Tensor]:
    """[B, H, M, K] views of each piece's keys, or of their values."""
    parts = x_NHK.split([piece.groups * piece.keys for piece in pieces])
    return [rearrange(x, "(B M) H K -> B H M K", B=p.groups) for p, x in zip(pieces, parts, strict=True)]


def _repeated(x_NGK: Tensor, heads: int) -> Tensor:
    """[N, H, K] keys or values, once for each query head."""
    times = heads // x_NGK.shape[1]
    return x_NGK if times == 1 else x_NGK.repeat_interleave(times, dim=1)


def _how(piece: Piece, dtype: torch.dtype, scale: float | None) -> dict[str, Any]:
    added = None
    if piece.mask_B1LM is not None:
        added = torch.zeros(piece.mask_B1LM.shape, dtype=dtype).masked_fill_(~piece.mask_B1LM, -torch.inf)
    return {"dropout_p": 0.0, "is_causal": added is None, "attn_mask": added, "scale": scale}
