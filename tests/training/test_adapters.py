"""Adapters: where they go, what they train, and that what is saved computes what was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from beni.config import PeftOptions
from beni.data.spec import judged
from beni.errors import CheckpointError, ConfigError
from beni.eval.held_out import HeldOut
from beni.eval.judge import subset
from beni.eval.saved import load_saved
from beni.flops.peaks import measured
from beni.model.build import Built, build
from beni.processes import processes
from beni.testing.launch import run_ranks
from beni.testing.sharded import rows
from beni.training import loading
from beni.training.adapters import add_adapters, merge
from beni.training.freeze import ADAPTER
from beni.training.run import train
from tests.training.small import SHAPES, small_run

KINDS = ("lora", "rslora", "dora")


def adapted(tmp_path: Path, llm: PreTrainedModel | None = None, **options: Any) -> Built:
    """A small model whose adapters compute something."""
    built = made(tmp_path, llm)
    add_adapters(built.model, PeftOptions(**options))
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.add_(0.3 * torch.rand_like(parameter))
    return built


def made(tmp_path: Path, llm: PreTrainedModel | None = None) -> Built:
    torch.manual_seed(0)
    built = build(small_run(tmp_path), ["what color is the shape? red"])
    if llm is not None:
        built.model.llm = llm
    return built


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model/model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_what_peft_merges_and_computes_the_same(tmp_path: Path, kind: str) -> None:
    built = adapted(tmp_path, peft=kind, peft_encoder=kind, peft_rank=4)
    batch = rows(built)[0]
    built.model.eval()
    loss = built.model(packed=batch).loss
    plain = made(tmp_path)
    before = plain.model.eval()(packed=batch).loss
    merged = merge(built.model, built.model.state_dict())
    plain.model.load_state_dict(merged)
    torch.testing.assert_close(plain.model(packed=batch).loss, loss, rtol=1e-5, atol=0)
    assert abs(loss - before) > 1e-3
    for path, layer in built.model.named_modules():
        if hasattr(layer, "lora_A"):
            layer.merge()  # type: ignore[operator]
            theirs: Any = layer
            torch.testing.assert_close(merged[f"{path}.weight"], theirs.base_layer.weight, rtol=1e-5, atol=1e-6)


def test_layers_that_store_their_weights_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's Conv1D."""
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=300, n_positions=64)
    built = adapted(tmp_path, GPT2LMHeadModel(config), peft="dora", peft_rank=4)
    built.model.eval()
    ids = torch.arange(10)[None]
    want = built.model.llm(input_ids=ids).logits
    again = GPT2LMHeadModel(config).eval()
    merged = merge(built.model, built.model.state_dict())
    again.load_state_dict({n.removeprefix("llm."): v for n, v in merged.items() if n.startswith("llm.")})
    torch.testing.assert_close(again(input_ids=ids).logits, want, rtol=1e-4, atol=1e-5)


def test_targets_are_whole_paths(tmp_path: Path) -> None:
    [found] = add_adapters(made(tmp_path).model, PeftOptions(peft="lora", peft_targets=r".*\.1\.self_attn\.(q|v)_proj"))
    assert found.paths == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    [everything] = add_adapters(made(tmp_path).model, PeftOptions(peft="lora"))
    assert len(everything.paths) == 14 and "lm_head" not in everything.summary()
    assert "2 x model.layers.*.mlp.down_proj" in everything.summary()
    with pytest.raises(ConfigError, match=r"'q_proj' is the whole path of no linear layer of llm, as model\.layers\.0"):
        add_adapters(made(tmp_path).model, PeftOptions(peft="lora", peft_targets="q_proj"))


def test_what_cannot_be_adapted_or_is_trained_itself_is_refused(tmp_path: Path) -> None:
    built = made(tmp_path)
    built.model.encoders["main"].blocks = lambda: [built.model.encoders["main"].stem]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"encoder\.main has no linear layers"):
        add_adapters(built.model, PeftOptions(peft_encoder="lora"))
    with pytest.raises(ConfigError, match="--train llm: it has adapters"):
        train(small_run(tmp_path / "run", peft={"peft": "lora"}, optim={"train": ["llm"]}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_moves_adapters_and_not_what_they_adapt(tmp_path: Path, kind: str) -> None:
    peft = {"peft": kind, "peft_encoder": kind, "peft_rank": 4, "peft_dropout": 0.1}
    result = train(small_run(tmp_path / "run", peft=peft))
    part = result["parameters"]["per_part"]
    assert {f"llm{ADAPTER}", f"encoder.main{ADAPTER}"} < part.keys()
    assert result["parameters"]["trainable"] == sum(
        part[p] for p in (f"llm{ADAPTER}", f"encoder.main{ADAPTER}", "connector")
    )
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert "model.layers.0.self_attn.q_proj" in stored["adapted"]["llm"]
    start = train(small_run(tmp_path / "start", optim={"steps": 1, "lr": 0.0}))
    assert start["steps"] == 1
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {name.rsplit(".", 2)[-2] for name in moved if name.startswith("llm.")} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert all(".layers." in name for name in moved if name.startswith("encoders."))


def test_what_is_saved_is_what_was_judged(tmp_path: Path) -> None:
    """The loss of the saved model, without adapters, is the one that the run measured with them."""
    test = f"{SHAPES}&split=test"
    peft, optim = {"peft": "dora", "peft_rank": 4}, {"steps": 6, "lr": 1e-2}
    config = small_run(tmp_path / "run", peft=peft, optim=optim, data={"eval_data": [test]})
    result = train(config)
    [samples] = judged([test], ()).values()
    chosen = subset(samples, config.data.eval_limit)
    with processes(config.run) as procs:
        saved, composer = load_saved(str(tmp_path / "run/model"), procs.device)
        loss = HeldOut.of([chosen], composer, config.batch).loss(saved, procs)
    assert loss == pytest.approx(result["eval_loss"], rel=1e-4)


def test_adapters_load_by_themselves_around_the_part_they_adapt(tmp_path: Path) -> None:
    train(small_run(tmp_path / "run", peft={"peft": "dora", "peft_rank": 4}, optim={"steps": 6, "lr": 1e-2}))
    train(small_run(tmp_path / "start", optim={"steps": 1, "lr": 0.0}))  # the same first weights
    start, trained = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name / "model").llm for name in ("start", "run")
    )
    ids = torch.arange(12)[None]
    before = start(input_ids=ids).logits
    wrapped = PeftModel.from_pretrained(start, str(tmp_path / "run/adapters/llm")).eval()
    found, wanted = wrapped(input_ids=ids).logits, trained(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, wanted, atol=1e-3)


def _train(out: str, changes: dict[str, Any]) -> None:
    train(small_run(Path(out), **changes))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_two_processes_equal_one_with_activation_checkpointing(tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {"peft": {"peft": kind, "peft_encoder": kind, "peft_rank": 4}}
    _train(str(tmp_path / "one"), changes)
    two = {**changes, "run": {"out": str(tmp_path / "two"), "activation_checkpointing": "full"}}
    run_ranks(_train, 2, str(tmp_path / "two"), two)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-5)


def test_checkpoints_hold_what_is_trained_and_go_on_with_the_same_bits(tmp_path: Path) -> None:
    peft = {"peft": "dora", "peft_rank": 4, "peft_dropout": 0.3}  # dropout draws from the generator that is restored
    changes: dict[str, Any] = {"peft": peft, "optim": {"steps": 4}}
    run = {"checkpoint_every": 2}
    train(small_run(tmp_path / "run", run=run, **changes))
    whole = weights(tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    held = FileSystemReader(folder / "step-00000002").read_metadata().state_dict_metadata
    models = {name for name in held if name.startswith("model.")}
    assert any("lora_A" in name for name in models) and any("connector" in name for name in models)
    assert not [name for name in models if "base_layer" in name or "embed_tokens" in name or "lm_head" in name]
    (folder / "latest").write_text("step-00000002")
    measured.cache_clear()  # as in a process of its own
    train(small_run(tmp_path / "run", run={**run, "resume": "auto"}, **changes))
    again = weights(tmp_path / "run")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_checkpoint_beside_other_frozen_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not in it: going on from others would be another model."""
    changes: dict[str, Any] = {"optim": {"train": ["connector"]}, "run": {"checkpoint_every": 2}}
    train(small_run(tmp_path / "run", **changes))
    original = loading.build

    def other(*arguments: Any) -> Built:
        built = original(*arguments)
        with torch.no_grad():
            built.model.llm.get_input_embeddings().weight[0, 0] += 1
        return built

    monkeypatch.setattr(loading, "build", other)
    changes["run"]["resume"] = "auto"
    with pytest.raises(CheckpointError, match="was made with frozen weights"):
        train(small_run(tmp_path / "run", **changes))
