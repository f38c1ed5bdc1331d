"""Activation checkpointing: what a block computed is thrown away and computed again when the backward pass needs it."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from beni.config import RunOptions
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.parts import stacks

_ATEN = torch.ops.aten
DEAR = [
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN.convolution.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
]
"""Operations whose results `selective` keeps: they cost the most, and what lies between them costs the memory."""


def checkpoint_activations(model: BeniForConditionalGeneration, options: RunOptions) -> None:
    """Make blocks of a model recompute their activations; names of parameters stay as they are.

    Blocks are an encoder's, a connector's, and the decoder layers with whatever a fusion inserted into them. To be
    called before the model is sharded, so that parameters are gathered for the second computation as well.

    Args:
        model: changed in place.
        options: `activation_checkpointing` says what is kept, `activation_checkpointing_every` which blocks it is for.
    """
    if options.activation_checkpointing == "none":
        return
    keep: dict[str, Any] = {}
    if options.activation_checkpointing == "selective":
        keep["context_fn"] = _keep_dear
    for stack in stacks(model):
        for block in stack[:: options.activation_checkpointing_every]:
            block.forward = _Recomputed(block.forward, keep)


def _keep_dear() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """What a block's forward pass and its second computation run under."""
    kept, recalled = create_selective_checkpoint_contexts(DEAR)
    return _OfDear(kept), _OfDear(recalled)


class _OfDear(TorchDispatchMode):
    """A mode that sees dear operations only.

    PyTorch's two count all operations and want the same ones again. In a block that a fusion's block is inserted into,
    FSDP gathers that one's parameters, and does not do so by the same operations the second time.
    """

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()
        self.mode = mode

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled blocks stay compiled under it, as under PyTorch's two."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DEAR:
            return self.mode.__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


class _Recomputed:
    """A block's forward pass, whose activations are not kept where there will be a backward pass."""

    def __init__(self, forward: Callable[..., Any], keep: dict[str, Any]) -> None:
        self.forward, self.keep = forward, keep

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*arguments, **named)
        return checkpoint(self.forward, *arguments, use_reentrant=False, **self.keep, **named)
