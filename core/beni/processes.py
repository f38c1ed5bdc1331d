"""This process among the others: one on a CPU, several over gloo, one or many GPUs."""

import ctypes
import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from beni.config import RunOptions
from beni.errors import BeniError, ConfigError, LostRank, first_line
from beni.peers import Peers

LEAST_PATIENCE_S = 300.0
"""How long all may take to start, if the time-out is not longer."""
_peers: ContextVar[Peers | None] = ContextVar("peers", default=None)
"""Of the group that this process is in; torch, too, keeps one for the whole process."""
_joined = count()
"""How often this process has joined others: a launcher's store outlives a group, and so would what was told in it."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's numbers for `mallopt` (malloc.h)."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Which process this is, and what it computes on."""

    rank: int
    world: int
    device: torch.device
    mesh: DeviceMesh | None
    """(replicas, processes of a replica); over the second the model is sharded. None for one process."""
    copies: DeviceMesh | None = None
    """(processes, 1): of what every process has a copy; None if nothing is to be laid out so."""
    peers: Peers | None = None
    """The others, where there are any."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sum numbers over all processes."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self._waiting():
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
        with self._waiting():
            dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's picklable value, on every process."""
        if self.world == 1:
            return value
        box = [value]
        with self._waiting():
            dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def give(self, tensor: torch.Tensor) -> None:
        """Write the main process's values into a tensor of the same shape and dtype on every other process."""
        if self.world > 1 and tensor.numel():
            plain = tensor.contiguous()
            with self._waiting():
                dist.broadcast(plain.view(-1).view(torch.uint8), src=0)  # of any dtype
            if plain is not tensor and not self.is_main:
                tensor.copy_(plain)

    def barrier(self) -> None:
        """Wait for everybody: longer than the time-out for those who are alive and have much to do."""
        if self.peers is not None:
            self.peers.meet()
        elif self.world > 1:
            self.sum(0.0)

    def doing(self, what: str) -> None:
        """Tell the others what this process does now, for messages about it (`in step 18`)."""
        if self.peers is not None:
            self.peers.doing = what

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """For the others; if they do not come, it says who."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:  # of all backends, whatever has happened
            lost = None if self.peers is None else self.peers.lost(time.monotonic() - began)
            if lost is None:
                raise
            raise lost from error


@contextmanager
def processes(options: RunOptions) -> Iterator[Processes]:
    """Join the other processes that torchrun started, if any, for the length of a `with` block.

    Inside another such block they stay joined, with the time-out of that one.

    Raises:
        ConfigError: the device is not available here, or the processes cannot be so many replicas.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world % options.replicas:
        raise ConfigError(f"--replicas {options.replicas} does not divide the number of processes, {world}")
    device = _device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    started = world > 1 and not dist.is_initialized()
    with _group(options, rank, world, device) if started else nullcontext():
        mesh = _mesh(device, options.replicas, world) if world > 1 else None
        copies = _mesh(device, world, world) if world > 1 and options.frozen_encoders == "replicated" else None
        try:
            yield Processes(rank, world, device, mesh, copies, _peers.get())
        finally:  # torch keeps meshes in caches, and a mesh keeps its groups
            for each in (mesh, copies):
                getattr(each, "_pg_registry", {}).clear()


def _mesh(device: torch.device, replicas: int, world: int) -> DeviceMesh:
    return init_device_mesh(device.type, (replicas, world // replicas), mesh_dim_names=("replicate", "shard"))


@contextmanager
def _group(options: RunOptions, rank: int, world: int, device: torch.device) -> Iterator[None]:
    """A group of torch's, whose processes know of each other."""
    peers = _join(options, rank, world, device)
    token = _peers.set(peers)
    try:
        with _told(peers):
            try:
                yield
            finally:
                dist.destroy_process_group()
                gc.collect()  # a thread of gloo with a tensor to release when the interpreter ends would abort it
    finally:
        _peers.reset(token)


def _join(options: RunOptions, rank: int, world: int, device: torch.device) -> Peers:
    """Form the group; returns the others.

    Raises:
        LostRank: not all have come in time.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=options.timeout)
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    patience = max(options.timeout, LEAST_PATIENCE_S)
    absent = "not all"
    try:
        found, _, _ = next(dist.rendezvous("env://", rank, world, timeout=timedelta(seconds=patience)))
        store = dist.PrefixStore(f"group/{next(_joined)}", found)
        absent = _wait_for_all(store, rank, world, patience)
        if not absent:
            peers = Peers(store, rank, world, options.timeout, f"{'torchrun' if launched else 'rank 0'} at {address}")
            dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world)
            return peers
        why = ""
    except RuntimeError as error:
        why = f" ({first_line(error)})"
    if not absent:
        raise LostRank(
            f"all {world} processes came to {address}, but cannot reach each other{why}: a firewall, or the wrong "
            f"network interface; name the right one in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        )
    raise LostRank(
        f"{absent} of the {world} processes came to {address} within {patience:g} s{why}: look for one that did not "
        f"start or cannot reach this address, or wait longer with --timeout"
    )


def _wait_for_all(store: dist.Store, rank: int, world: int, patience: float) -> str:
    """Wait until all have started; which ranks have not, if some have not."""
    here = [f"here/{number}" for number in range(world)]
    store.set(here[rank], "")
    try:
        store.wait(here, timedelta(seconds=patience))
    except RuntimeError:
        missing = [str(number) for number, key in enumerate(here) if not store.check([key])]
        return f"all but rank {', '.join(missing)}"
    return ""


@contextmanager
def _told(peers: Peers) -> Iterator[None]:
    """Before this process goes, the others learn why; if it goes because of them, the error says so."""
    try:
        yield
        peers.doing = "at the end"
        peers.meet()
    except LostRank as error:
        peers.leave("bereft", str(error))
        raise
    except BeniError as error:
        peers.leave("failed", str(error))
        raise
    except (KeyboardInterrupt, SystemExit):
        peers.leave("failed", "it was interrupted")
        raise
    except BaseException as error:  # as which the failure of a checkpoint comes
        if blame := _missing(peers):
            peers.leave("bereft", blame)
            raise LostRank(blame) from error
        peers.leave("failed", f"{type(error).__name__}: {first_line(error)}")
        raise
    peers.leave()


def _missing(peers: Peers) -> str:
    try:
        return peers.missing()
    except LostRank as error:
        return str(error)


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


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
