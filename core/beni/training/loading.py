"""One process loads a model; the others build it without memory and are given its weights, unit by unit.

However many processes train, one of them holds the whole model, once and in its machine's memory; every other one holds
its share, and one unit on the way there.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from beni.config import RunConfig
from beni.errors import PluginError
from beni.model.build import Built, build, hollow
from beni.processes import Processes


def load_once(config: RunConfig, texts: Iterable[str], processes: Processes) -> Built:
    """Build and load a model on the first process; on the others the same model, with its weights on the meta device.

    `handed_over` gives them their weights.

    Args:
        config: the run.
        texts: the training texts, for a language model that learns its vocabulary from them.
        processes: every one of them calls this.

    Raises:
        BeniError: as `build`, on the first process; the others learn that it has failed.
    """
    built = build(config, texts) if processes.is_main else None
    processes.barrier()  # loading takes as long as it takes
    parts = processes.from_main(built and (built.model.config, built.tokenizer, built.loaded))
    if built is not None:
        return built
    torch.manual_seed(config.run.seed + processes.rank)  # the first one's generator has drawn the weights
    model, tokenizer, loaded = parts
    return hollow(model, tokenizer, config.batch.row_tokens, loaded)


def handed_over(model: nn.Module, units: Iterable[nn.Module], processes: Processes) -> Iterator[nn.Module]:
    """Units of a model, each with its tensors on the device and the first process's values in them, when it is due.

    Args:
        model: alike on every process; what is on the meta device gets memory.
        units: of the model, children before parents, the model itself last. What was done with a child when its parent
            is due, sharding above all, stays.
        processes: every one of them takes all units.

    Raises:
        PluginError: a part is built in another way on another process, or keeps a tensor that is neither a parameter
            nor a buffer, so that nobody can give it a value.
    """
    _check_alike(model, processes)
    done: set[nn.Module] = set()
    for unit in units:
        modules = [module for module in unit.modules() if module not in done]
        done.update(modules)
        _hand_over(modules, processes)
        yield unit
    _check_whole(model)


def _hand_over(modules: Iterable[nn.Module], processes: Processes) -> None:
    given: dict[Tensor, Tensor] = {}  # tied tensors stay one
    for module in modules:
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    if tensor not in given:
                        given[tensor] = _give(tensor, processes)
                    held[name] = given[tensor]  # type: ignore[assignment]


def _give(tensor: Tensor, processes: Processes) -> Tensor:
    """A tensor with the first process's value: itself where that is possible, else one that takes its place."""
    if tensor.is_meta:
        value = torch.empty(tensor.shape, dtype=tensor.dtype, device=processes.device)
    else:
        value = tensor.detach().to(processes.device)
    processes.give(value)
    if not isinstance(tensor, nn.Parameter):
        return value
    if tensor.is_meta:
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    tensor.data = value
    return tensor


def _check_alike(model: nn.Module, processes: Processes) -> None:
    """Refuse tensors that another process does not have, before anybody waits for one."""
    own = {
        name: (tuple(tensor.shape), tensor.dtype)
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
    }
    first = processes.from_main(own)
    differ = next((name for name in first | own if first.get(name) != own.get(name)), "")
    told = differ and f"'{differ}' is {_shown(own.get(differ))}, on process 0 {_shown(first.get(differ))}"
    for rank, difference in enumerate(processes.gather(told)):
        if difference:
            raise PluginError(
                f"process {rank} built another model than process 0, which loaded its weights: {difference}; parts "
                f"must be built from their options and their spec alone"
            )


def _shown(tensor: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "missing" if tensor is None else f"{'×'.join(map(str, tensor[0])) or 'a number'} in {tensor[1]}"


def _check_whole(model: nn.Module) -> None:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                raise PluginError(
                    f"'{path}.{name}' ({type(module).__name__}) is a tensor that is neither a parameter nor a buffer: "
                    f"only process 0 has its value; keep it with register_buffer(…, persistent=False)"
                )
