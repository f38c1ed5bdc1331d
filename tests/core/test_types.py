"""What modules hand on is opened by whoever looks for tensors in it."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from beni.interfaces import FusionContext
from beni.nn.plan import plan_cross
from beni.types import Features, Grid, VisualTokens, Windows

X = torch.zeros(6, 8)
WINDOWS = Windows((X[:, None],), (X[:, :1] == 0,), X + 1)
HANDED_ON = [
    Features(X, (Grid(2, 3),), X[None]),
    WINDOWS,
    VisualTokens(X, ((6,),), WINDOWS, (X + 2,)),
    FusionContext(X, plan_cross([(0, 6)], torch.zeros(6, 2, dtype=int).numpy()), X[:, 0].long(), WINDOWS, (X + 2,)),
]


@pytest.mark.parametrize("value", HANDED_ON, ids=lambda value: type(value).__name__)
def test_every_tensor_is_found_and_can_be_exchanged(value: Any) -> None:
    """FSDP gathers parameters for a backward pass where it finds tensors in what a module returned."""
    leaves, form = tree_flatten(value)
    assert {id(leaf) for leaf in leaves if isinstance(leaf, Tensor)} == {id(tensor) for tensor in tensors(value)}
    other = tree_unflatten([torch.ones_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form)
    assert type(other) is type(value)
    assert len(tensors(other)) == len(tensors(value))
    assert all(tensor.all() for tensor in tensors(other))


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a field, or in tuples and other such values in one, in their order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for each in value for tensor in tensors(each)]
    if isinstance(value, Features | Windows | VisualTokens | FusionContext):
        return [tensor for field in fields(value) for tensor in tensors(getattr(value, field.name))]
    return []
