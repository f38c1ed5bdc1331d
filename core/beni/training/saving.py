"""How a checkpoint is written: whole or not at all, at once or while training goes on.

It is written into a hidden folder, flushed, and renamed; `latest` moves only after that. Every file's checksum is
written with it and verified before a byte is loaded, because a damaged shard loads without an error.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from beni.errors import LostRank, NotWritten, first_line
from beni.processes import Processes
from beni.training.checkpoint import Facts, Position, held
from beni.training.committed import BEST, LATEST, STATE, checksum, latest, named, steps_of
from beni.weights import sha256

LOOK_S = 5.0
"""How often it is looked whether all processes are alive, while a checkpoint is waited for."""


class Saver:
    """Writes the checkpoints of a run, one after another.

    Args:
        folder: of the run's checkpoints.
        model, optimizer: what is saved.
        processes: all of them take part in every call.
        keep: newest checkpoints that stay, besides the best.
        background: a checkpoint is copied to memory, and written by a thread while training goes on.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        processes: Processes,
        keep: int = 2,
        background: bool = False,
    ) -> None:
        self.folder, self.model, self.optimizer, self.processes = folder, model, optimizer, processes
        self.keep = keep
        several = background and processes.world > 1
        self.group = dist.new_group(backend="gloo") if several else None  # training goes on in the others
        self.stager = DefaultStager(StagingOptions(False, False, False, False)) if background else None
        self.pending: Future[str] | None = None
        self.position = Position()
        """Of the checkpoint that was begun last."""

    def begin(self, position: Position, facts: Facts, best: float | None = None) -> None:
        """Write and commit a checkpoint, or begin to; the one before it is settled.

        Args:
            position: where the run is.
            facts: what must be equal on resume, and who computed the run.
            best: the validation loss, if it is the lowest so far. Checkpoints of later steps than this one's, left by a
                run that went on from here in another way, are deleted.
        """
        assert self.pending is None, "the checkpoint before is not settled"
        self.processes.doing(f"saving the checkpoint of step {position.steps}")
        self.position = position
        if reason := self._together(self._make_room if self.processes.is_main else _nothing):
            self.pending = Future()
            self.pending.set_result(reason)
            return
        state = held(self.model, self.optimizer, self.processes)
        text = {"position": asdict(position), "facts": asdict(facts)}
        if self.stager is not None:
            copy: Any = self.stager.stage(state)
            self.pending = _in_background(lambda: self._attempt(lambda: self._write(copy, text, best)))
            return
        reason = self._attempt(lambda: self._write(state, text, best))
        self.pending = Future()
        self.pending.set_result(reason)

    def settle(self) -> None:
        """Wait for the checkpoint that was begun last, if there is one.

        Raises:
            NotWritten: on every process, if one of them could not write its share; what was there before still is.
            LostRank: it is not written because a process does not answer.
        """
        if self.pending is None:
            return
        self.processes.doing(f"saving the checkpoint of step {self.position.steps}")
        self._wait(pending := self.pending)
        self.pending = None
        if not (reason := self._together(pending.result)):
            return
        if self.processes.is_main:
            shutil.rmtree(self._draft, ignore_errors=True)
        before = latest(self.folder)
        whole = f"{before.name} is whole" if before else "there is none before it"
        raise NotWritten(
            f"the checkpoint of step {self.position.steps} cannot be written to {self.folder}: {reason} "
            f"({_free(self.folder)}); {whole}"
        )

    def close(self) -> None:
        """Let what is being written in the background be finished, when the run ends because of something else."""
        if self.pending is not None:
            with suppress(LostRank):  # who is lost has been told, or will be
                self._wait(self.pending)

    def _wait(self, pending: "Future[str]") -> None:
        """However long it takes, as long as all processes are alive."""
        peers = self.processes.peers
        while wait([pending], LOOK_S).not_done:
            if peers is not None and (lost := peers.lost(0)) is not None:
                raise lost

    @property
    def _final(self) -> Path:
        return self.folder / f"step-{self.position.steps:08d}"

    @property
    def _draft(self) -> Path:
        return self.folder / f".{self._final.name}"

    def _make_room(self) -> str:
        for draft in self.folder.glob(".step-*"):  # of a write that was interrupted, of whatever step
            shutil.rmtree(draft, ignore_errors=True)
        self._draft.mkdir(parents=True)
        return ""

    def _write(self, state: dict[str, Any], text: dict[str, Any], best: float | None) -> str:
        """Write this process's share; torch waits for all of them, and the main process commits."""
        alone = self.processes.world == 1
        dcp.save(state, checkpoint_id=self._draft, process_group=self.group, no_dist=alone)
        if self.processes.is_main:
            self._commit(text, best)
        return ""

    def _commit(self, text: dict[str, Any], best: float | None) -> None:
        text = text | {"files": {file.name: sha256(file) for file in sorted(self._draft.iterdir())}}
        _write(self._draft / STATE, json.dumps(text | {"checksum": checksum(text)}, indent=1))
        for file in self._draft.iterdir():
            _flush(file)
        if self._final.exists():  # it is written again
            self._final.rename(self._draft.with_suffix(".before"))
        self._draft.rename(self._final)
        shutil.rmtree(self._draft.with_suffix(".before"), ignore_errors=True)
        if best is not None:
            _point(self.folder, BEST, f"{self._final.name} {best!r}")
        _point(self.folder, LATEST, self._final.name)
        _flush(self.folder)
        _prune(self.folder, self.position.steps, self.keep)

    def _together(self, work: Callable[[], str]) -> str:
        """Do something on every process; why it failed on one of them, the same on all."""
        reason = self._attempt(work)
        self.processes.barrier()
        return next((told for told in self.processes.gather(reason) if told), "")

    def _attempt(self, work: Callable[[], str]) -> str:
        """What `work` returns: why something could not be written; also if it raises that."""
        try:
            return work()
        except (OSError, CheckpointException) as error:
            return _reason(error)


def _in_background(work: Callable[[], str]) -> "Future[str]":
    """Do something in a thread that does not keep the interpreter from ending."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _nothing() -> str:
    """What other processes do while the main one writes."""
    return ""


def _reason(error: OSError | CheckpointException) -> str:
    """What the operating system said, if it is known: torch's writer of archives may hide it behind a RuntimeError.

    torch wraps whatever is raised while it writes, Ctrl-C too; what has nothing to do with writing is raised again.
    """
    first: BaseException = error
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))[0]
    failed: BaseException | None = first
    while failed is not None:
        if isinstance(failed, OSError):
            return failed.strerror or str(failed)
        failed = failed.__cause__ or failed.__context__
    if not isinstance(first, RuntimeError):
        raise first
    return first_line(first)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free"
    except OSError as error:
        return f"free space unknown: {error.strerror}"


def _prune(folder: Path, steps: int, keep: int) -> None:
    """Delete what is neither among the newest nor the best, and what lies in the future of a step."""
    made = sorted(folder.glob("step-*"))
    best = named(folder, BEST)
    if best is not None and steps_of(best) > steps:
        (folder / BEST).unlink()
        best = None
    past = [path for path in made if steps_of(path) <= steps]
    for path in made:
        if path not in past[-keep:] and path != best:
            shutil.rmtree(path, ignore_errors=True)  # somebody may read it: the new one is written all the same


def _point(folder: Path, pointer: str, text: str) -> None:
    draft = folder / f".{pointer}"
    try:
        _write(draft, text)
        draft.replace(folder / pointer)
    finally:
        draft.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
