"""The one place where a model is moved, sharded and given its precision. Parts know nothing of it.

The order matters: compiled blocks, activation checkpointing (which calls them twice), then FSDP2, then (in
`beni.training.run`) loading, freezing, the optimizer. One process has no use for FSDP2.
"""

from collections.abc import Collection, Iterator
from itertools import chain

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from beni.config import RunOptions
from beni.model.llm import decoder_layers
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.parts import stacks
from beni.processes import Processes
from beni.training.compiled import compile_blocks
from beni.training.loading import handed_over
from beni.training.masters import Lowered, Masters
from beni.training.recompute import checkpoint_activations


def parallelize(
    model: BeniForConditionalGeneration,
    processes: Processes,
    options: RunOptions | None = None,
    frozen: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Move a model to its device and shard it with FSDP2, innermost units first: blocks, parts, root.

    What is computed with are the first process's weights. Blocks are compiled, recompute their activations, and frozen
    encoders lie elsewhere, if the options say so.

    Args:
        model: the same on every process; on all but the first one its weights may be on the meta device.
        frozen: keys of the encoders of which nothing is trained.
        dtype: of the computation.

    FSDP2 shards over processes, and keeps fp32 masters while computing in bf16; one process keeps those by itself.
    Gradients are summed, not averaged, over processes: the loss is divided by the global number of targets before.
    """
    options = options or RunOptions()
    if options.compile:
        compile_blocks(model)
    if processes.mesh is None:
        model.to(processes.device)
        if dtype is not torch.float32:
            masters = Masters(model, dtype)
            for block in chain.from_iterable(stacks(model)):
                block.forward = Lowered(block.forward, masters)
    checkpoint_activations(model, options)
    if processes.mesh is None:
        return
    mesh = processes.mesh if processes.mesh.shape[0] > 1 else processes.mesh["shard"]
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    elsewhere = {m for key in frozen for m in model.encoders[key].modules()}
    for unit in handed_over(model, units(model), processes):
        if unit not in elsewhere or options.frozen_encoders == "sharded":
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        elif options.frozen_encoders == "replicated":
            fully_shard(unit, mesh=processes.copies, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def gather_once(part: nn.Module) -> None:
    """Prepare units that no step will run: in bf16 FSDP asks every unit for gradients of whole parameters, which come
    into being when they are gathered."""
    for module in part.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def exchange_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums gradients over processes, or keeps its own for a later one to sum.

    Kept gradients are whole and in fp32, on every process.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def units(model: BeniForConditionalGeneration) -> Iterator[nn.Module]:
    """What is sharded as one unit, children before parents, each module once."""
    seen: set[int] = set()

    def once(*modules: nn.Module) -> Iterator[nn.Module]:
        for module in modules:
            if id(module) not in seen and any(True for _ in module.parameters()):
                seen.add(id(module))
                yield module

    for encoder in model.encoders.values():
        yield from once(*encoder.blocks(), encoder)  # type: ignore[operator]
    for connector in model.connectors():
        yield from once(*connector.blocks(), connector)  # type: ignore[operator]
    yield from once(*model.fusion.blocks())
    yield from once(*decoder_layers(model.llm))
    yield from once(model)
