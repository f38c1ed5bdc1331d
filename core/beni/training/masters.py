"""One process that computes in bf16: its model computes with copies of its parameters, which stay in fp32.

Of several processes FSDP2 does that too, while it gathers what they share; where there is nothing to gather, its passes
over all parameters and gradients would only cost time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Masters:
    """The fp32 parameters of a model, and copies that stand in their places while it computes.

    A copy is made again when its parameter has changed. Its gradients are added up in that parameter's `grad`, in fp32,
    after every backward pass. Frozen parameters whose values lose nothing have no copy: they are kept in the lower
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
                pair.places.append((module._parameters, name))
        model.register_forward_pre_hook(self._enter, prepend=True)
        model.register_forward_hook(self._leave, always_call=True)

    def inside(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward pass, with the copies in their places also when the backward pass runs it again."""

        def lowered(*arguments: Any, **named: Any) -> Any:
            with self._lowered():
                return forward(*arguments, **named)

        return lowered

    @contextmanager
    def _lowered(self) -> Iterator[None]:
        if self._inside:
            yield
            return
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self, *_: Any) -> None:
        for pair in self._pairs.values():
            pair.renew()
            for held, name in pair.places:
                held[name] = pair.copy
        self._inside = True

    def _leave(self, *_: Any) -> None:
        for parameter, pair in self._pairs.items():
            for held, name in pair.places:
                held[name] = parameter
        self._inside = False


class _Pair:
    """A parameter, its copy, and the tables of modules in which it stands, under which name."""

    def __init__(self, parameter: nn.Parameter, dtype: torch.dtype) -> None:
        self.parameter = parameter
        self.copy = nn.Parameter(parameter.detach().to(dtype))
        self.copy.register_post_accumulate_grad_hook(self._hand_on)
        self.places: list[tuple[dict[str, Any], str]] = []
        self._version = parameter._version
        self._due = False
        """A fused optimizer changes parameters without telling their version: but not without a gradient."""

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
