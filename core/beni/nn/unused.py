"""Parameters that features do not depend on: layers behind the chosen one, pooling heads, mask tokens.

They belong to the network and are kept with it. Whoever trains the part expects a gradient for each of its parameters,
on every process and in every step: these get zeros.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def unused_parameters(module: nn.Module, output: Tensor) -> list[str]:
    """Names of a module's parameters that an output of it does not depend on. Runs backward: use the meta device.

    All parameters must require gradients, also those that stay as they are where the network comes from.
    """
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


def drop_unused_children(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Replace a module's children none of whose parameters are used; returns the unused names that remain.

    For a module of whose children only those that hold used parameters are run, whatever it does with the rest.
    """
    unused = set(names)
    for child, part in module.named_children():
        own = {f"{child}.{name}" for name, _ in part.named_parameters()}
        if own and own <= unused:
            setattr(module, child, nn.Identity())
            unused -= own
    return sorted(unused)


def with_zero_gradients(output: Tensor, module: nn.Module, names: Iterable[str]) -> Tensor:
    """The same output, in whose backward pass these parameters of the module get zero gradients instead of none."""
    trained = [p for p in map(module.get_parameter, names) if p.requires_grad]
    return _Zeros.apply(output, *trained) if trained and torch.is_grad_enabled() else output


class _Zeros(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
