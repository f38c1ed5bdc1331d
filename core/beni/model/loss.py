"""The training objective: summed cross-entropy over targets, to be divided by their global number or weight."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_AT_ONCE = {"cpu": 1 << 20}
"""Logits that are widened to fp32 at a time, by the kind of device: on a CPU what a cache holds."""
_ELSEWHERE = 1 << 26
"""Where each piece is some launches of kernels."""


def summed_cross_entropy(
    logits: Float[Tensor, "targets vocab"],
    targets: Int[Tensor, " targets"],
    weights: Float[Tensor, " targets"] | None = None,
) -> Float[Tensor, ""]:
    """-Σ w log p(target), in nats, computed in fp32; every w is 1 without weights.

    Zero, with zero gradients, where there is no target.
    """
    loss: Tensor = _SummedCrossEntropy.apply(logits, targets, weights)
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    """PyTorch's, without its four fp32 tensors as large as all logits (widened, log-probabilities, two gradients).

    d loss / d logits = w (softmax(logits) - onehot(target)); all but the logits' normaliser is computed again for it.
    """

    @staticmethod
    def forward(ctx: Any, logits_KV: Tensor, targets_K: Tensor, weights_K: Tensor | None) -> Tensor:
        losses_K = logits_KV.new_empty(len(logits_KV), dtype=torch.float32)
        normaliser_K = torch.empty_like(losses_K)
        for rows in _pieces(logits_KV):
            logits = logits_KV[rows].float()
            normaliser_K[rows] = logits.logsumexp(-1)
            losses_K[rows] = normaliser_K[rows] - logits.gather(-1, targets_K[rows, None])[:, 0]
        ctx.save_for_backward(logits_KV, targets_K, weights_K, normaliser_K)
        return (losses_K if weights_K is None else losses_K * weights_K).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits_KV, targets_K, weights_K, normaliser_K = ctx.saved_tensors
        gradient_K = gradient.expand(len(logits_KV)) if weights_K is None else gradient * weights_K
        out_KV = torch.empty_like(logits_KV)
        for rows in _pieces(logits_KV):
            part = (
                logits_KV[rows]
                .to(torch.float32, copy=True)
                .sub_(normaliser_K[rows, None])
                .exp_()
                .mul_(gradient_K[rows, None])
            )
            out_KV[rows] = part.scatter_add_(-1, targets_K[rows, None], -gradient_K[rows, None])
        return out_KV, None, None


def _pieces(logits_KV: Tensor) -> Iterator[slice]:
    """Rows, a few at a time."""
    count, vocabulary = logits_KV.shape
    few = max(1, _AT_ONCE.get(logits_KV.device.type, _ELSEWHERE) // vocabulary)
    return (slice(start, start + few) for start in range(0, count, few))
