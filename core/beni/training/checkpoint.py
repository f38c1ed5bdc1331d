"""Checkpoints: everything a run needs to go on as if it had never stopped, committed whole or not at all.

It holds what is trained; what is frozen is loaded again from where it came, and must be the same (`facts`).

A checkpoint is written into a hidden folder, flushed, and renamed; `latest` moves only after that. Every file's
checksum is written with it and verified before a byte is loaded, because a damaged shard loads without an error.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from beni.errors import CheckpointError, NotWritten, first_line
from beni.processes import Processes
from beni.training.committed import BEST, LATEST, STATE, checksum, latest, named, steps_of, verify
from beni.weights import sha256


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is: steps done, and the plan's position behind them."""

    steps: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    skipped: int = 0
    """Of the steps done, those left out because something was not finite."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a checkpoint knows of its run besides tensors; plain values."""

    required: Mapping[str, Any] = field(default_factory=dict)
    """Must be equal for a continuation to be the same run: the configuration's hash, the frozen weights."""
    computed: tuple[Mapping[str, Any], ...] = ({"from_step": 0},)
    """By whom the run was computed: `from_step`, and what decides nothing but the order of sums (processes, threads).
    One more entry for each continuation in which that differs."""

    def continued(self, path: Path, state: Mapping[str, Any], steps: int) -> "Facts":
        """These facts, of a run that goes on from a checkpoint's.

        Raises:
            CheckpointError: the checkpoint is of another run.
        """
        made = state["facts"]
        if "required" not in made:
            raise CheckpointError(
                f"checkpoint {path} was written by an earlier version of beni, which did not note who computed a run: "
                f"go on with that version, or start a new run from a model that it saved (--init)"
            )
        for name, value in self.required.items():
            if made["required"].get(name) != value:
                raise CheckpointError(
                    f"checkpoint {path} was made with {name} = {made['required'].get(name)}, this run has {value}: "
                    f"going on would not give the same result; use the same settings, or start a new run"
                )
        now, before = dict(self.computed[-1], from_step=steps), tuple(made["computed"])
        unchanged = now == dict(before[-1], from_step=steps)
        return Facts(self.required, before if unchanged else (*before, now))

    def change(self) -> str:
        """What the last continuation changed, for people; empty if nothing."""
        if len(self.computed) < 2:
            return ""
        before, now = self.computed[-2:]
        names = [name for name in now if name != "from_step" and now[name] != before.get(name)]
        return ", ".join(f"{now[name]} {name} instead of {before.get(name)}" for name in names)


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    facts: Facts,
    processes: Processes,
    keep: int = 2,
    best: float | None = None,
) -> Path:
    """Write and commit a checkpoint; every process takes part.

    Args:
        folder: of the run's checkpoints.
        facts: what must be equal on resume, and who computed the run.
        keep: newest checkpoints that stay, besides the best.
        best: the validation loss, if it is the lowest so far. Checkpoints of later steps than this one's, left by a run
            that went on from here in another way, are deleted.

    Returns:
        The committed folder.

    Raises:
        NotWritten: on every process, if one of them cannot write its share; what was there before is still there.
    """
    processes.doing(f"saving the checkpoint of step {position.steps}")
    final = folder / f"step-{position.steps:08d}"
    draft = folder / f".{final.name}"

    def begin() -> None:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)

    def write() -> None:
        with _quiet():
            dcp.save(_state(model, optimizer, processes), checkpoint_id=draft, no_dist=processes.world == 1)

    def commit() -> None:
        files = {file.name: sha256(file) for file in sorted(draft.iterdir())}
        state = {"position": asdict(position), "facts": asdict(facts), "files": files}
        _write(draft / STATE, json.dumps(state | {"checksum": checksum(state)}, indent=1))
        for file in draft.iterdir():
            _flush(file)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        if best is not None:
            _point(folder, BEST, f"{final.name} {best!r}")
        _point(folder, LATEST, final.name)
        _flush(folder)
        _prune(folder, position.steps, keep)

    try:
        for work in (begin, write, commit):
            _together(work if processes.is_main or work is write else _nothing, processes)
    except NotWritten as error:
        if processes.is_main:
            shutil.rmtree(draft, ignore_errors=True)
        before = latest(folder)
        whole = f"{before.name} is whole" if before else "there is none before it"
        raise NotWritten(
            f"the checkpoint of step {position.steps} cannot be written to {folder}: {error} ({_free(folder)}); {whole}"
        ) from error
    return final


def _together(work: Callable[[], None], processes: Processes) -> None:
    """Do something on every process; if it fails on one, all raise.

    Raises:
        NotWritten: why, in the words of whoever could not.
    """
    reason, cause = "", None
    try:
        work()
    except (OSError, CheckpointException) as error:
        reason, cause = _reason(error), error
    processes.barrier()
    if reasons := [told for told in processes.gather(reason) if told]:
        raise NotWritten(reasons[0]) from cause


def _nothing() -> None:
    """What other processes do while the main one writes."""


def _reason(error: BaseException) -> str:
    """What the operating system said, if it is known: torch's writer of archives may hide it behind its own."""
    failed: BaseException | None = error
    if isinstance(error, CheckpointException):
        failed = next(iter(error.failures.values()))[0]
    first = failed
    while failed is not None:
        if isinstance(failed, OSError):
            return failed.strerror or str(failed)
        failed = failed.__cause__ or failed.__context__
    return first_line(first or error)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free"
    except OSError as error:
        return f"free space unknown: {error.strerror}"


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: Facts,
    processes: Processes,
) -> tuple[Position, Facts]:
    """Verify a checkpoint and continue from it, with as many processes as there are now.

    Returns:
        Where the run goes on, and its facts from there on.

    Raises:
        CheckpointError: damaged, or of another run; the message says which file or fact.
    """
    state = verify(path)
    position = Position(**state["position"])
    facts = facts.continued(path, state, position.steps)
    tensors = _state(model, optimizer, processes)
    if _rng(processes) not in dcp.FileSystemReader(path).read_metadata().state_dict_metadata:
        del tensors[_rng(processes)]  # there are more processes than before
    with _quiet():
        dcp.load(tensors, checkpoint_id=path, no_dist=processes.world == 1)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=tensors["model"],
        optim_state_dict=tensors["optimizer"],
        options=StateDictOptions(strict=False),  # what is frozen is not in it
    )
    if position.steps == position.skipped:
        optimizer.state.clear()  # no step was taken: torch made a state where there was none
    if _rng(processes) in tensors:
        _generator(processes).set_state(tensors[_rng(processes)])
    return position, facts


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
            shutil.rmtree(path)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes) -> dict[str, Any]:
    untouched = not optimizer.state
    model_state, optimizer_state = get_state_dict(model, optimizer)
    if untouched:
        optimizer.state.clear()  # torch has made one, with a step counted in it
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    trained = {name: value for name, value in model_state.items() if name not in frozen}
    return {"model": trained, "optimizer": optimizer_state, _rng(processes): _generator(processes).get_state()}


@contextmanager
def _quiet() -> Iterator[None]:
    """One process without a process group is what we ask for; torch warns that it looks like a mistake."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _generator(processes: Processes) -> torch.Generator:
    """The one that dropout draws from."""
    device = processes.device
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def _rng(processes: Processes) -> str:
    return f"rng_{processes.rank}"


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
