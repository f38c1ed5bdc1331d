"""Activation checkpointing: the same bits for less memory and more computation."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from beni.config import RunOptions
from beni.data.batch import PackedBatch
from beni.model.build import Built, build
from beni.model.parts import stacks
from beni.testing.launch import run_ranks
from beni.testing.sharded import rows
from beni.training.recompute import checkpoint_activations
from beni.training.run import train
from tests.training.small import FUSIONS, small_run

KINDS = ("full", "selective")


def made(tmp_path: Path, fusion: str, kind: str = "none", every: int = 1) -> tuple[Built, PackedBatch]:
    torch.manual_seed(0)
    built = build(small_run(tmp_path, **FUSIONS[fusion]), ["what color is the shape? red"])
    options: Any = {"activation_checkpointing": kind, "activation_checkpointing_every": every}
    checkpoint_activations(built.model, RunOptions(**options))
    return built, rows(built)[0]


def step(built: Built, batch: PackedBatch) -> dict[str, torch.Tensor]:
    built.model(packed=batch).loss.backward()
    return {name: p.grad for name, p in built.model.named_parameters() if p.grad is not None}


def flops(built: Built, batch: PackedBatch) -> int:
    with FlopCounterMode(display=False) as counter:
        step(built, batch)
    return counter.get_total_flops()


def flops_of_blocks(built: Built, batch: PackedBatch) -> int:
    """Of one forward pass of all blocks."""
    count = 0
    handles = []
    for stack in stacks(built.model):
        for block in stack:
            counter = FlopCounterMode(display=False)
            handles.append(block.register_forward_pre_hook(lambda *_, c=counter: c.__enter__() and None))

            def close(*_: Any, c: FlopCounterMode = counter) -> None:
                nonlocal count
                c.__exit__(None, None, None)
                count += c.get_total_flops()

            handles.append(block.register_forward_hook(close))
    with torch.no_grad():
        built.model(packed=batch)
    for handle in handles:
        handle.remove()
    return count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_have_the_same_bits(tmp_path: Path, fusion: str, kind: str) -> None:
    kept = step(*made(tmp_path, fusion))
    again = step(*made(tmp_path, fusion, kind))
    assert kept and kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_price_is_at_most_a_forward_pass_of_the_blocks(tmp_path: Path, fusion: str) -> None:
    """At most: what comes last in a block is not needed again. Of every second block less; of nothing dear nothing."""
    plain, full, half, selective = (
        flops(*made(tmp_path, fusion, *options)) for options in ((), ("full",), ("full", 2), ("selective",))
    )
    again = flops_of_blocks(*made(tmp_path, fusion))
    assert plain + again / 2 < full <= plain + again
    assert plain < half < full
    assert selective == plain


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_keep_less(tmp_path: Path, kind: str) -> None:
    """Of what autograd would keep for the backward pass."""

    def kept(built: Built, batch: PackedBatch) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            built.model(packed=batch)
        return total

    assert kept(*made(tmp_path, "inline", kind)) < 0.6 * kept(*made(tmp_path, "inline"))


def _train(out: str, changes: dict[str, Any]) -> None:
    train(small_run(Path(out), **changes))


def test_two_processes_train_the_same_with_and_without(tmp_path: Path) -> None:
    """With cross-attention, whose blocks are gathered by themselves, inside of a decoder layer that is recomputed."""
    for kind in ("none", *KINDS):
        changes = {**FUSIONS["xattn"], "run": {"activation_checkpointing": kind, "out": str(tmp_path / kind)}}
        run_ranks(partial(_train, str(tmp_path / kind)), 2, changes)
    saved = {kind: load_file(tmp_path / kind / "model/model.safetensors") for kind in ("none", *KINDS)}
    assert all(torch.equal(saved["none"][name], saved[kind][name]) for kind in KINDS for name in saved["none"])
