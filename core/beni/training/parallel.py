"""The one place where a model is moved, sharded and given its precision. Parts know nothing of it."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from beni.model.llm import decoder_layers
from beni.model.modeling import BeniForConditionalGeneration
from beni.processes import Processes


def parallelize(model: BeniForConditionalGeneration, processes: Processes) -> None:
    """Move a model to its device and shard it with FSDP2, innermost units first: blocks, parts, root.

    FSDP2 does two jobs: it shards over processes, and it keeps fp32 masters while computing in bf16. Where neither is
    needed (one process in fp32) the model stays as it is. Gradients are summed, not averaged, over processes: the loss
    is divided by the global number of targets before.
    """
    model.to(processes.device)
    if processes.mesh is None:
        return
    policy = MixedPrecisionPolicy(param_dtype=processes.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in units(model):
        fully_shard(unit, mesh=processes.mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


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
        yield from once(*connector.blocks(), connector)
    yield from once(*model.fusion.blocks())
    yield from once(*decoder_layers(model.llm))
    yield from once(model)
