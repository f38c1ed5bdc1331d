"""The training objective: summed cross-entropy over targets, to be divided by their global number."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def summed_cross_entropy(logits: Float[Tensor, "targets vocab"], targets: Int[Tensor, " targets"]) -> Float[Tensor, ""]:
    """-Σ log p(target), in nats, computed in fp32. Zero, with zero gradients, where there is no target."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")
