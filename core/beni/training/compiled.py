"""`torch.compile`, block by block: blocks of a kind share their graphs, however many there are."""

from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from beni.config import RunOptions
from beni.errors import ConfigError
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.parts import stacks


def check(options: RunOptions, device: torch.device) -> None:
    """Refuse to compile where that cannot be done, before anything is loaded.

    Raises:
        ConfigError: blocks are to be compiled for a CPU, and there is no C++ compiler.
    """
    if not options.compile or device.type != "cpu":
        return
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "--compile needs a C++ compiler, and none is found: install one (apt install g++), name yours in the "
            "environment variable CXX, or leave out --compile"
        ) from error


def compile_blocks(model: BeniForConditionalGeneration, backend: str = "inductor") -> None:
    """Compile the forward and backward passes of a model's blocks; names of parameters stay as they are.

    Blocks are an encoder's, a connector's, and the decoder layers with whatever a fusion inserted into them. Sizes are
    variables in a graph: rows of other lengths, with other images, use the same ones.

    Args:
        model: changed in place.
        backend: of `torch.compile`.
    """
    for stack in stacks(model):
        for block in stack:
            block.forward = _Compiled(block.forward, backend)


class _Compiled:
    """A block's forward pass, compiled where there will be a backward pass.

    Elsewhere it runs as it is written: a key-value cache is state of Python's, other in every layer and at every token.
    """

    def __init__(self, forward: Callable[..., Any], backend: str) -> None:
        self.forward = forward
        self.compiled = torch.compile(forward, dynamic=True, backend=backend)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        forward = self.compiled if torch.is_grad_enabled() else self.forward
        return forward(*arguments, **named)
