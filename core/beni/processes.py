"""This process among the others: one on a CPU, several over gloo, one or many GPUs."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from beni.config import RunOptions
from beni.errors import ConfigError

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for another before it gives up."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's numbers for `mallopt` (malloc.h)."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Which process this is, and what it computes on."""

    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype
    """Of the computation; parameters are kept in fp32."""
    mesh: DeviceMesh | None
    """(replicas, processes of a replica); over the second the model is sharded. None when nothing needs FSDP."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def replica(self) -> int:
        """Which copy of the model this process has a share of."""
        return 0 if self.mesh is None else self.mesh.get_local_rank("replicate")

    def sum(self, *values: float) -> list[float]:
        """Sum numbers over all processes."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def all(self, flag: bool) -> bool:
        """Whether something holds on every process."""
        return self.sum(not flag)[0] == 0

    def gather(self, value: Any) -> list[Any]:
        """One picklable value from every process, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's value, on every process."""
        return self.gather(value)[0]

    def barrier(self) -> None:
        """Wait for everybody."""
        if self.world > 1:
            self.sum(0.0)


@contextmanager
def processes(options: RunOptions) -> Iterator[Processes]:
    """Join the other processes that torchrun started, if any, for the length of a `with` block.

    Raises:
        ConfigError: the device or precision is not available here, or the processes cannot be so many replicas.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world % options.replicas:
        raise ConfigError(f"--replicas {options.replicas} does not divide the number of processes, {world}")
    device = _device(options.device)
    dtype = _dtype(options.dtype, device)
    if device.type == "cpu":
        keep_freed_memory()
    needs_fsdp = world > 1 or dtype is not torch.float32
    started = needs_fsdp and not dist.is_initialized()
    if started:
        arguments: dict[str, Any] = {"rank": 0, "world_size": 1, "store": dist.HashStore()} if world == 1 else {}
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, **arguments)
    shape = (options.replicas, world // options.replicas)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard")) if needs_fsdp else None
    try:
        yield Processes(rank, world, device, dtype, mesh)
    finally:
        if started:
            dist.destroy_process_group()
            _end_threads(mesh)


def keep_freed_memory() -> None:
    """Have glibc reuse freed memory instead of handing it back to the kernel, from here on and in forked workers.

    Without this every large tensor is mapped anew, and writing to it faults page by page (docs/performance.md has what
    that costs). The price is that a process does not shrink. What the user has set in the
    environment is left as it is; without glibc nothing happens.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _end_threads(mesh: DeviceMesh | None) -> None:
    """Let go of a destroyed group, so that its threads end.

    torch keeps meshes in caches, and a mesh keeps its groups. A thread of gloo that still has a tensor to release when
    the interpreter ends would abort the process.
    """
    if mesh is not None:
        getattr(mesh, "_pg_registry", {}).clear()
    gc.collect()


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
