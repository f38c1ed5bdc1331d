"""Runs a function in several processes over gloo, as torchrun would."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., None], world: int, *arguments: Any) -> None:
    """Call `function(*arguments)` in `world` processes with one thread each; raises if one of them does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_entry, (function, world, port, arguments), nprocs=world, start_method="spawn")


def _entry(rank: int, function: Callable[..., None], world: int, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
    }
    torch.set_num_threads(1)
    function(*arguments)
