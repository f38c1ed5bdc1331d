"""Encoder specs and features without an encoder."""

import torch
from torch import Tensor

from beni.types import EncoderSpec, Features, Grid, Size


def spec(width: int, side: int = 32, stride: int = 8) -> EncoderSpec:
    """An encoder of that width whose grid is side / stride."""
    return EncoderSpec(Size(side, side), stride, width, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def features(*crops: Tensor) -> Features:
    """Crops of [N, D] tokens each, every one a grid of a single row."""
    return Features(torch.cat(crops), tuple(Grid(1, len(crop)) for crop in crops))
