"""Counts the floating point operations of a forward pass, and those that its backward pass will need.

A multiplication with an addition is two operations; only what multiplies matrices counts, as in every model FLOPs
figure: matrix products, convolutions, and whatever has a formula in `torch.utils.flop_counter.flop_registry`. A part
that calls a kernel of its own registers a formula for it there (`register_flop_formula`): without one nobody knows what
it multiplies, and nothing is counted at all.

The backward pass is derived, not run: a product of two operands costs as much again for each operand that needs a
gradient. So what is frozen and reached by no gradient costs its forward pass alone, a frozen weight with a gradient
passing through 2 times as much, a product of two activations or a trained weight 3 times as much, and the first trained
layer behind an input without gradient 2 times (Kaplan et al. 2020 and Chowdhery et al. 2022 count 3 for everything).
PyTorch's `FlopCounterMode` counts the same by running both passes, but takes the backward pass of a grouped convolution
for that of a dense one.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from beni.errors import Uncountable

Result = TypeVar("Result")

_ATEN = torch.ops.aten
_BIASED = {_ATEN.addmm, _ATEN.baddbmm}
"""Products whose first argument is only added."""
_PRODUCTS = {_ATEN.mm, _ATEN.bmm, _ATEN.convolution}
"""Products of their first two arguments."""
_KNOWN = {"aten", "prim", "prims", "torchvision", "c10d", "_c10d_functional", "fsdp", "profiler"}
"""Namespaces of PyTorch's own operations. Those without a formula mostly multiply no matrices, or little."""
_UNKNOWN = {"aten::_grouped_mm", "aten::_scaled_grouped_mm", "torchvision::deform_conv2d"}
"""And those of which that is not true."""
_MOST = 2
"""What a backward pass costs at most, in forward passes: of an operation that fuses several products, also if it has
more inputs."""


class Flops(NamedTuple):
    """Floating point operations."""

    forward: float = 0
    backward: float = 0
    again: float = 0
    """Of forward passes that the backward pass repeats, where activations are recomputed; whole ones, by convention:
    PyTorch leaves out what is behind the last tensor that it needs."""

    @property
    def model(self) -> float:
        """What the model needs: the numerator of the MFU."""
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        """What is computed: the numerator of the HFU."""
        return self.forward + self.backward + self.again

    def __add__(self, other: "Flops") -> "Flops":  # type: ignore[override]
        return Flops(*(a + b for a, b in zip(self, other, strict=True)))

    def __mul__(self, times: float) -> "Flops":  # type: ignore[override]
        return Flops(*(each * times for each in self))


PartFlops = dict[str, Flops]
"""By part: encoder.KEY, connector, fusion, llm, head."""


def added(*counts: Mapping[str, Flops]) -> PartFlops:
    """The sum, part by part."""
    total: PartFlops = {}
    for each in counts:
        for part, flops in each.items():
            total[part] = total.get(part, Flops()) + flops
    return total


def scaled(counts: Mapping[str, Flops], times: float) -> PartFlops:
    """A multiple of a count."""
    return {part: flops * times for part, flops in counts.items()}


def count(
    work: Callable[[], Result],
    parts: Mapping[str, Sequence[nn.Module]],
    rest: str,
    recomputed: Sequence[nn.Module] = (),
    kept: Collection[Any] = (),
) -> tuple[Result, PartFlops]:
    """Run something and count what it computes, and what its backward pass would.

    Whether gradients are needed is read from the tensors: set `requires_grad` as for training. On the meta device
    nothing is computed, and attention is counted whole whatever its mask.

    Args:
        work: what is counted.
        parts: modules by part; an operation belongs to the innermost of them in whose forward pass it happens.
        rest: the part of everything outside of them.
        recomputed: modules whose forward pass the backward pass repeats, if a gradient leaves them.
        kept: operations whose results are kept all the same.

    Returns:
        The result, and the count by part, without parts that compute nothing.

    Raises:
        Uncountable: an operation of somebody's own that has no formula.
    """
    counter = _Counter(rest, kept)
    with counter.inside(parts, recomputed), torch.enable_grad(), counter:
        result = work()
    return result, counter.counts


class _Counter(TorchDispatchMode):
    def __init__(self, rest: str, kept: Collection[Any]) -> None:
        super().__init__()
        self.counts: PartFlops = {}
        self.kept = set(kept)
        self.stack = [rest]
        self.recomputed: list[PartFlops] = []
        """For each module that is recomputed and running, what it computed."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = op(*args, **kwargs)
        formula = flop_registry.get(op._overloadpacket)
        if formula is not None:
            forward = formula(*args, **kwargs, out_val=out)
            self._add(self.counts, Flops(forward, forward * _gradients(op._overloadpacket, args, kwargs)))
            if self.recomputed and op not in self.kept:
                self._add(self.recomputed[-1], Flops(again=forward))
        elif op.namespace not in _KNOWN or op._schema.name in _UNKNOWN:
            raise Uncountable(
                f"operation '{op.name()}' has no formula for its FLOPs: register one with torch.utils.flop_counter."
                f"register_flop_formula, which returns 0 if it multiplies no matrices (docs/flops.md)"
            )
        return out

    def _add(self, counts: PartFlops, flops: Flops) -> None:
        counts[self.stack[-1]] = counts.get(self.stack[-1], Flops()) + flops

    @contextmanager
    def inside(self, parts: Mapping[str, Sequence[nn.Module]], recomputed: Sequence[nn.Module]) -> Iterator[None]:
        """Know which part is running."""
        handles = []
        for part, modules in parts.items():
            for module in modules:
                handles.append(module.register_forward_pre_hook(lambda *_, part=part: self.stack.append(part)))
                handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        for module in recomputed:
            handles.append(module.register_forward_pre_hook(lambda *_: self.recomputed.append({})))
            handles.append(module.register_forward_hook(lambda _, __, out: self._recomputed(out), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self.stack.pop()

    def _recomputed(self, out: Any) -> None:
        inside = self.recomputed.pop()
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(out)):
            self.counts = added(self.counts, inside)


def _gradients(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """So many forward passes the backward pass of an operation costs: one for each operand that needs a gradient."""
    if op in _PRODUCTS:
        operands = args[:2]
    elif op in _BIASED:
        operands = args[1:3]
    else:
        operands = (*args, *kwargs.values())
    return min(_MOST, sum(isinstance(each, Tensor) and each.requires_grad for each in operands))
