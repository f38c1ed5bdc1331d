"""One process that computes in bf16: copies do the computing, masters are what is trained and kept."""

import gc
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from beni.config import RunConfig
from beni.model.build import Built, build
from beni.model.modeling import BeniForConditionalGeneration
from beni.processes import Processes, processes
from beni.testing.sharded import rows
from beni.training import masters, prepare
from beni.training.loading import load_once
from beni.training.masters import Masters
from beni.training.parallel import parallelize
from beni.training.run import train
from tests.training.small import FUSIONS, small_run

LOW = torch.bfloat16


def made(folder: Path, fusion: str = "xattn") -> Built:
    torch.manual_seed(0)
    return build(small_run(folder, **FUSIONS[fusion]), ["what color is the shape? red"])


def lowered(built: Built, **options: Any) -> Built:
    config = small_run(Path("unused"), run={"device": "cpu", **options})
    with processes(config.run) as procs:
        parallelize(built.model, procs, config.run, dtype=LOW)
    return built


def lower(model: nn.Module) -> nn.Module:
    """A model's parameters, and not its buffers."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(LOW)
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_inside_all_is_low_and_outside_all_is_as_it_was(tmp_path: Path) -> None:
    built = made(tmp_path)
    before = {name: (id(p), p.detach().clone()) for name, p in built.model.named_parameters()}
    lowered(built)
    seen: set[torch.dtype] = set()
    for module in built.model.modules():
        module.register_forward_pre_hook(lambda m, _: seen.update(p.dtype for p in m.parameters(recurse=False)))
    built.model(packed=rows(built)[0]).loss.backward()
    assert seen == {LOW}
    for name, parameter in built.model.named_parameters():
        identity, value = before[name]
        assert id(parameter) == identity and torch.equal(parameter, value)
        assert parameter.grad is None or parameter.grad.dtype is torch.float32


def test_gradients_are_those_of_a_model_in_bf16_and_add_up_in_fp32(tmp_path: Path) -> None:
    built, plain = lowered(made(tmp_path)), made(tmp_path)
    plain.model.load_state_dict(built.model.state_dict())
    lower(plain.model)
    sums: dict[str, torch.Tensor] = {}
    for batch in rows(built):
        built.model(packed=batch).loss.backward()
        plain.model.zero_grad()
        plain.model(packed=batch).loss.backward()
        for name, gradient in gradients(plain.model).items():
            sums[name] = sums.get(name, torch.zeros(())) + gradient.float()
    found = gradients(built.model)
    assert found.keys() == sums.keys() and len(rows(built)) > 1
    assert all(torch.equal(found[name], sums[name]) for name in sums)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_of_an_optimizer_changes_the_next_pass(tmp_path: Path, fused: bool) -> None:
    """A fused one does not tell the versions of what it changes."""
    built = lowered(made(tmp_path))
    batch = rows(built)[0]
    optimizer = torch.optim.AdamW(built.model.parameters(), lr=1e-2, fused=fused)
    for _ in range(2):
        built.model(packed=batch).loss.backward()
        with torch.no_grad():
            built.model(packed=batch)  # between the backward pass and the step
        optimizer.step()
        optimizer.zero_grad()
        fresh = made(tmp_path).model
        fresh.load_state_dict(built.model.state_dict())
        with torch.no_grad():
            assert torch.equal(built.model(packed=batch).loss, lower(fresh)(packed=batch).loss)


def test_weights_that_are_loaded_are_computed_with(tmp_path: Path) -> None:
    built = lowered(made(tmp_path))
    batch = rows(built)[0]
    with torch.no_grad():
        before = built.model(packed=batch).loss
        for parameter in built.model.parameters():
            parameter.mul_(1.5)
        assert not torch.equal(built.model(packed=batch).loss, before)


def test_after_an_error_the_masters_are_back(tmp_path: Path) -> None:
    built = lowered(made(tmp_path))
    with pytest.raises(TypeError):
        built.model(packed=3)
    assert {p.dtype for p in built.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kept", ["full", "selective"])
def test_recomputing_changes_no_gradient(tmp_path: Path, kept: str) -> None:
    found = []
    for how in ("none", kept):
        built = lowered(made(tmp_path), activation_checkpointing=how)
        built.model(packed=rows(built)[0]).loss.backward()
        found.append(gradients(built.model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_frozen_weights_that_bf16_holds_are_kept_in_it_and_saved_as_they_were(tmp_path: Path) -> None:
    exact = nn.Linear(3, 3, bias=False)
    exact.weight.data = torch.tensor([[1.0, 0.5, -2.0]] * 3)
    inexact = nn.Linear(3, 3, bias=False)
    trained = nn.Linear(3, 3, bias=False)
    trained.weight.data = exact.weight.data.clone()
    model = nn.Sequential(exact, inexact, trained).requires_grad_(False)
    trained.requires_grad_(True)
    Masters(model, LOW)
    assert [layer.weight.dtype for layer in model] == [LOW, torch.float32, torch.float32]
    model(torch.ones(2, 3, dtype=LOW)).sum().backward()
    assert trained.weight.grad is not None and inexact.weight.grad is None


def test_what_is_saved_is_in_fp32_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(config: RunConfig, texts: Iterable[str], procs: Processes) -> Built:
        built = load_once(config, texts, procs)
        with torch.no_grad():
            for parameter in built.model.encoders.parameters():
                parameter.copy_(parameter.to(LOW))
        return built

    monkeypatch.setattr(prepare, "load_once", exact)
    train(small_run(tmp_path / "run", run={"dtype": "bf16"}, optim={"train": ["connector"]}))
    loaded = BeniForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_copies_are_freed_with_their_model(tmp_path: Path) -> None:
    """As several trainings in one process need it."""
    built = lowered(made(tmp_path))
    built.model(packed=rows(built)[0]).loss.backward()
    seen = [weakref.ref(parameter) for parameter in built.model.parameters()]
    with built.model.llm.register_forward_pre_hook(lambda m, _: seen.extend(map(weakref.ref, m.parameters()))):
        built.model(packed=rows(built)[0])
    del built
    gc.collect()
    assert len(seen) > 20 and not any(parameter() is not None for parameter in seen)


def test_blocks_that_run_again_do_not_copy_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = lowered(made(tmp_path), activation_checkpointing="full")
    loss = built.model(packed=rows(built)[0]).loss
    monkeypatch.setattr(masters._Pair, "renew", None)
    loss.backward()
