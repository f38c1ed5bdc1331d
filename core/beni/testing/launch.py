"""Runs a function in several processes over gloo, as torchrun would."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., None], world: int, *arguments: Any) -> None:
    """Call `function(*arguments)` in `world` processes with one thread each; raises if one of them does.

    They are forked from a process that has imported what a run needs and done nothing else, because importing takes
    longer than most of what is called. What they print goes where that process's output went.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    multiprocessing.set_forkserver_preload(["beni.training.run"])
    mp.start_processes(_entry, (function, {**os.environ, **common}, arguments), nprocs=world, start_method="forkserver")


def _entry(
    rank: int, function: Callable[..., None], environment: Mapping[str, str], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()  # it is that of the process which they are forked from
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    function(*arguments)
