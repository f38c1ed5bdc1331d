"""What a checkpoint holds, and how a run goes on from one: as if it had never stopped.

It holds what is trained; what is frozen is loaded again from where it came, and must be the same (`Facts`). How one is
written is in `saving`, how it is found and verified in `committed`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from beni.data.plan import Place
from beni.errors import CheckpointError
from beni.processes import Processes
from beni.training.committed import verify

# One process without a group is what is asked for. Told once and for all: checkpoints are written by threads, too.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is: steps done, and the plan's position behind them."""

    steps: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    skipped: int = 0
    """Of the steps done, those left out because something was not finite."""
    streams: Sequence[Any] = ()
    """Where the streams stood when the epoch began, as `beni.data.plan.Place` has it."""

    @property
    def place(self) -> Place:
        """In the plan."""
        return Place(self.epoch, self.step_in_epoch, self.streams)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a checkpoint knows of its run besides tensors; plain values."""

    required: Mapping[str, Any] = field(default_factory=dict)
    """Must be equal for a continuation to be the same run: the configuration's hash, the frozen weights."""
    computed: tuple[Mapping[str, Any], ...] = ({"from_step": 0},)
    """By whom the run was computed: `from_step`, and what decides nothing but rounding (processes, threads, whether
    blocks were compiled). One more entry for each continuation in which that differs."""

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
        names = [name for name in now if name != "from_step" and name in before and now[name] != before[name]]
        return ", ".join(f"{now[name]} {name} instead of {before[name]}" for name in names)


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
    tensors = held(model, optimizer, processes)
    if _rng(processes) not in dcp.FileSystemReader(path).read_metadata().state_dict_metadata:
        del tensors[_rng(processes)]  # there are more processes than before
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


def held(model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes) -> dict[str, Any]:
    """The tensors of a checkpoint; not copies."""
    untouched = not optimizer.state
    model_state, optimizer_state = get_state_dict(model, optimizer)
    if untouched:
        optimizer.state.clear()  # torch has made one, with a step counted in it
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    trained = {name: value for name, value in model_state.items() if name not in frozen}
    return {"model": trained, "optimizer": optimizer_state, _rng(processes): _generator(processes).get_state()}


def _generator(processes: Processes) -> torch.Generator:
    """The one that dropout draws from."""
    device = processes.device
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def _rng(processes: Processes) -> str:
    return f"rng_{processes.rank}"
