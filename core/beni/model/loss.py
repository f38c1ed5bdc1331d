"""The training objective: summed cross-entropy over targets, to be divided by their global number or weight."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def summed_cross_entropy(
    logits: Float[Tensor, "targets vocab"],
    targets: Int[Tensor, " targets"],
    weights: Float[Tensor, " targets"] | None = None,
) -> Float[Tensor, ""]:
    """-Σ w log p(target), in nats, computed in fp32; every w is 1 without weights.

    Zero, with zero gradients, where there is no target.
    """
    if weights is None:
        return F.cross_entropy(logits.float(), targets, reduction="sum")
    return F.cross_entropy(logits.float(), targets, reduction="none").mul(weights).sum()
