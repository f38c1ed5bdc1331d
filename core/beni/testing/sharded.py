"""A small model in two processes, one of them without an image, and the same in one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from beni.config import RunOptions
from beni.data.batch import PackedBatch, pack
from beni.model.build import Built
from beni.processes import Processes, processes
from beni.testing.launch import run_ranks
from beni.testing.small import CONVERSATIONS, make
from beni.training import checkpoint
from beni.training.checkpoint import Facts, Position
from beni.training.parallel import parallelize
from beni.training.saving import Saver

SEED = 7
"""Of the model that a checkpoint is loaded into."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Losses and gradients of two processes and of one; a model before it was saved and after it was loaded, whole."""

    loss: Tensor
    loss_of_one: Tensor
    gradients: dict[str, Tensor]
    gradients_of_one: dict[str, Tensor]
    saved: dict[str, Tensor]
    loaded: dict[str, Tensor]


def compare(folder: Path, tables: dict[str, Any]) -> Compared:
    """Compute two rows in two processes and in one.

    Args:
        folder: for what the processes write.
        tables: the model, as `beni.testing.small.make` takes it.

    Raises:
        AssertionError: a process failed; says why.
    """
    built = make(**tables)
    built.model.eval()
    losses = [built.model(packed=row).loss for row in rows(built)]
    torch.stack(losses).sum().backward()
    try:
        run_ranks(_one_of_two, 2, str(folder), tables)
    except Exception as error:  # torch wraps whatever happened in a process; its last line says it
        raise AssertionError(f"in two processes: {str(error).strip().splitlines()[-1]}") from error
    found = torch.load(folder / "two.pt", weights_only=True)
    return Compared(
        loss=found["loss"],
        loss_of_one=torch.stack(losses).sum().detach(),
        gradients=found["gradients"],
        gradients_of_one={name: p.grad for name, p in built.model.named_parameters() if p.grad is not None},
        saved=found["saved"],
        loaded=found["loaded"],
    )


def rows(built: Built) -> list[PackedBatch]:
    """One row with images, one without."""
    what, many, _, text, three, _ = (built.composer.compose(sample) for sample in CONVERSATIONS)
    return [pack(trees, built.composer) for trees in ([[what, many], [three]], [[text]])]


def _one_of_two(folder: str, tables: dict[str, Any]) -> None:
    """What each of two processes does: its row, a step, a checkpoint, and the checkpoint into another model."""
    with processes(RunOptions(device="cpu")) as procs:
        built = make(**tables)
        optimizer = _sharded(built, procs)
        loss = built.model(packed=rows(built)[procs.rank]).loss
        loss.backward()
        named = list(built.model.named_parameters())
        found: dict[str, Any] = {"loss": torch.tensor(procs.sum(float(loss.detach()))[0])}
        found["gradients"] = {name: _whole(p.grad) for name, p in named if p.grad is not None}
        optimizer.step()
        saver = Saver(Path(folder) / "checkpoints", built.model, optimizer, procs)
        saver.begin(Position(1), Facts())
        saver.settle()
        again = make(**tables, run={"seed": SEED})
        checkpoint.load(
            Path(folder) / "checkpoints" / "step-00000001", again.model, _sharded(again, procs), Facts(), procs
        )
        found |= {"saved": _state(built.model), "loaded": _state(again.model)}
        if procs.is_main:
            torch.save(found, Path(folder) / "two.pt")


def _sharded(built: Built, procs: Processes) -> torch.optim.Optimizer:
    parallelize(built.model, procs)
    built.model.eval()
    return torch.optim.AdamW(built.model.parameters(), lr=1e-3)


def _whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def _state(model: nn.Module) -> dict[str, Tensor]:
    state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return state
