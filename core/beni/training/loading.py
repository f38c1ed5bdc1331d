"""One process loads a model; the others build it without memory and are given its weights, unit by unit.

However many processes train, one of them holds the whole model, once and in its machine's memory; every other one holds
its share, and one unit on the way there.
"""

import pickle
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from beni.config import RunConfig
from beni.errors import BeniError, PluginError, first_line
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
        BeniError: as `build`, on every process.
        PluginError: the tokenizer cannot be given to another process.
    """
    if processes.world == 1:
        return build(config, texts)
    built, sent = None, b""
    if processes.is_main:
        try:
            built = build(config, texts)
            sent = _pickled(built, config)
        except BeniError as error:
            sent = pickle.dumps(error)
    processes.barrier()  # loading takes as long as it takes
    parts = pickle.loads(processes.from_main(sent))
    if isinstance(parts, BeniError):
        raise parts
    if built is not None:
        return built
    torch.manual_seed(config.run.seed + processes.rank)  # the first one's generator has drawn the weights
    model, tokenizer, loaded = parts
    return hollow(model, tokenizer, loaded, config.batch.row_tokens)


def _pickled(built: Built, config: RunConfig) -> bytes:
    """What another process builds the same model of."""
    try:
        return pickle.dumps((built.model.config, built.tokenizer, built.loaded))
    except Exception as error:  # of whatever kind: pickle calls what the tokenizer's class has defined
        raise PluginError(
            f"llm '{config.llm.plugin.name}': its tokenizer or its configuration cannot be given to the other "
            f"processes: {first_line(error)}"
        ) from error


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
    """Refuse tensors that another process does not have, before anybody waits for one, and other settings."""
    own = {
        name: f"{'×'.join(map(str, tensor.shape)) or 'a number'} in {tensor.dtype}"
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
    }
    for path, module in model.named_modules():
        if not path.startswith("llm"):  # transformers notes there how a model was loaded
            own |= {f"{path}.{name}": repr(value) for name, value in vars(module).items() if _is_setting(name, value)}
    first = processes.from_main(own)
    differ = next((name for name in first | own if first.get(name) != own.get(name)), "")
    told = differ and f"'{differ}' is {own.get(differ, 'missing')}, on process 0 {first.get(differ, 'missing')}"
    for rank, difference in enumerate(processes.gather(told)):
        if difference:
            raise PluginError(
                f"process {rank} built another model than process 0, which loaded its weights: {difference}; a part is "
                f"built from its options and its spec alone, what loading adds to that are parameters and buffers"
            )


def _is_setting(name: str, value: Any) -> bool:
    return type(value) in (bool, int, float, str) and not name.startswith("_") and name != "training"


def _check_whole(model: nn.Module) -> None:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(value)):
                raise PluginError(
                    f"'{path}.{name}' ({type(module).__name__}) is or holds a tensor that is neither a parameter nor "
                    f"a buffer: only process 0 has its value; keep it with register_buffer(…, persistent=False)"
                )
