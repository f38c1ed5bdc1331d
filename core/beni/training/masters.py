"""One process that computes in bf16: its model computes with copies of its parameters, which stay in fp32.

Of several processes FSDP2 does that too, while it gathers what they share; where there is nothing to gather, its passes
over all parameters and gradients would only cost time.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Masters:
    """The fp32 parameters of a model, and copies that stand in their places while it computes.

    A copy is made again when its parameter has changed. Its gradients are added up in that parameter's `grad`, in fp32,
    in every backward pass. Frozen parameters whose values lose nothing have no copy: they are kept in the lower
    precision.

    Args:
        model: changed in place: from here on it computes in `dtype`. What is trained must be known.
        dtype: of the computation.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._pairs: dict[nn.Parameter, _Pair] = {}
        self._inside = False
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None or not parameter.is_floating_point():
                    continue
                if not parameter.requires_grad and (low := parameter.detach().to(dtype)).equal(parameter.detach()):
                    parameter.data = low
                    continue
                pair = self._pairs.setdefault(parameter, _Pair(parameter, dtype))
                pair.places.append((module, name))
        model.register_forward_pre_hook(self._begin, prepend=True)
        model.register_forward_hook(self._end, always_call=True)

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """The copies are in their places, as they were in the forward pass of the whole model."""
        if self._inside:
            yield
            return
        self._put([(pair.places, pair.copy) for pair in self._pairs.values()])
        try:
            yield
        finally:
            self._end()

    def _begin(self, *_: Any) -> None:
        for pair in self._pairs.values():
            pair.renew()
        self._put([(pair.places, pair.copy) for pair in self._pairs.values()])
        self._inside = True

    def _end(self, *_: Any) -> None:
        self._put([(pair.places, pair.parameter) for pair in self._pairs.values()])
        self._inside = False

    @staticmethod
    def _put(tensors: list[tuple[list[tuple[nn.Module, str]], nn.Parameter]]) -> None:
        for places, tensor in tensors:
            for module, name in places:
                if type(module).__setattr__ is nn.Module.__setattr__:
                    module._parameters[name] = tensor  # what `setattr` comes to, without its checks
                else:
                    setattr(module, name, tensor)


class Lowered:
    """A block's forward pass that finds the copies in their places also when the backward pass runs it again."""

    def __init__(self, forward: Callable[..., Any], masters: Masters) -> None:
        self.forward, self.masters = forward, masters

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with self.masters.lowered():
            return self.forward(*arguments, **named)


class _Pair:
    """A parameter, its copy, and the modules in which it stands, under which name."""

    def __init__(self, parameter: nn.Parameter, dtype: torch.dtype) -> None:
        self.parameter = parameter
        self.copy = nn.Parameter(parameter.detach().to(dtype))
        self.places: list[tuple[nn.Module, str]] = []
        self._version = parameter._version
        self._due = False
        """A fused optimizer changes parameters without telling their version: but not without a gradient."""
        pair = weakref.ref(self)  # in a circle with its hook, no tensor would ever be freed

        def hand_on(copy: Tensor) -> None:
            pair()._hand_on(copy)  # type: ignore[union-attr]

        self.copy.register_post_accumulate_grad_hook(hand_on)

    def renew(self) -> None:
        """Take over what may have changed."""
        self.copy.requires_grad_(self.parameter.requires_grad)
        if self._due or self._version != self.parameter._version:
            self.copy.data.copy_(self.parameter.detach())
            self._version = self.parameter._version
            self._due = self.parameter.grad is not None

    def _hand_on(self, copy: Tensor) -> None:
        grad, copy.grad, self._due = copy.grad, None, True
        assert grad is not None
        if self.parameter.grad is None:
            self.parameter.grad = grad.to(self.parameter.dtype)
        else:
            self.parameter.grad += grad
