"""What PyTorch counts of a model while it runs both passes: the other side of a comparison of FLOPs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from beni.data.batch import PackedBatch
from beni.flops.account import META, hollow_copy
from beni.model.modeling import BeniForConditionalGeneration


def both_passes(model: BeniForConditionalGeneration, rows: Sequence[PackedBatch]) -> int:
    """Operations of rows, forward and backward, one row after another, on the meta device."""
    hollow, _ = hollow_copy(model)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _grouped}) as counter:
        for row in rows:
            hollow(packed=row.to(META)).loss.backward()
    return counter.get_total_flops()


def _grouped(gradient: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """PyTorch's own formula for the backward pass of a convolution knows no groups. This is a forward pass for each of
    the input and the weight that needs a gradient; arguments are shapes."""
    transposed, _, _, needed = rest[-4:]
    return conv_flop_count(x, weight, gradient, transposed=transposed) * sum(needed[:2])
