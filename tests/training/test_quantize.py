"""Quantized bases: what is kept of a weight, that it stays, and that what is saved computes what was trained."""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel

from beni.config import OptimConfig, PeftOptions, RunOptions, run_config_from_dict
from beni.errors import CheckpointError, ConfigError
from beni.model.build import Built, build
from beni.model.modeling import BeniForConditionalGeneration
from beni.options import Quantization
from beni.processes import processes
from beni.testing.launch import run_ranks
from beni.testing.sharded import rows
from beni.training import freeze, prepare
from beni.training.adapters import add_adapters
from beni.training.parallel import parallelize
from beni.training.quantize import SCHEMES, Quantized, QuantizedLinear, quantize, quantized_layers
from beni.training.recompute import checkpoint_activations
from beni.training.run import train
from tests.training.small import small_run

CPU = torch.device("cpu")
LLM = {"name": "tiny", "width": 64, "layers": 2, "heads": 2, "ff_width": 128}
"""Whose widths are whole numbers of groups."""
NORMAL = {"hqq8": 0.006, "hqq4": 0.1, "nf4": 0.1}
"""Largest errors of a weight, uniform or normal, as shares of its norm."""


def _needs(scheme: str, *others: str) -> Any:
    package = SCHEMES[scheme].package
    missing = pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")
    return pytest.param(scheme, *others, marks=missing)


every_scheme = pytest.mark.parametrize("scheme", [_needs(scheme) for scheme in SCHEMES])
four_bits = pytest.mark.parametrize("scheme", [_needs("hqq4"), _needs("nf4")])
needs_hqq = pytest.mark.skipif(find_spec("hqq") is None, reason="needs hqq")


def small(out: Path, scheme: str, kind: str = "lora", **changes: dict[str, Any]) -> Any:
    """A run with a quantized base."""
    peft = {"quant": scheme, "peft": kind, "peft_rank": 4} | changes.pop("peft", {})
    return small_run(out, peft=peft, **({"llm": LLM} | changes))


def made(tmp_path: Path, **llm: Any) -> Built:
    torch.manual_seed(0)
    return build(small_run(tmp_path, llm=LLM | llm), ["what color is the shape? red"])


def adapted(tmp_path: Path, scheme: str, kind: str) -> Built:
    """A small model with a quantized base and adapters that compute something."""
    built = made(tmp_path)
    quantize(built.model, scheme, CPU)
    add_adapters(built.model, PeftOptions(peft=kind, peft_rank=4))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.add_(0.3 * torch.rand_like(parameter))
    return built


def kept(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all that is kept of quantized weights."""
    return {
        f"{path}.{name}": value.detach().clone()
        for path, layer in quantized_layers(model).items()
        for name, value in layer.named_parameters()
    }


def watch(monkeypatch: pytest.MonkeyPatch, then: Callable[[nn.Module], None]) -> None:
    """Have runs hand over their model when it has been quantized."""

    def quantize_and_tell(model: BeniForConditionalGeneration, *arguments: Any) -> Quantized | None:
        found = quantize(model, *arguments)
        then(model)
        return found

    monkeypatch.setattr(prepare, "quantize", quantize_and_tell)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model/model.safetensors")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


# ------------------------------------------------------------------------------------------------------------ a layer


def test_every_choice_is_a_scheme() -> None:
    assert set(get_args(Quantization)) == {"none", *SCHEMES}


@every_scheme
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_with_the_weight_it_stands_for(scheme: str, dtype: torch.dtype) -> None:
    """In every direction, with one rounding, and nothing is kept for the backward pass but the codes."""
    torch.manual_seed(0)
    layer = nn.Linear(128, 6)
    quantized = QuantizedLinear(layer, SCHEMES[scheme], CPU)
    assert (quantized.weight - layer.weight).norm() < NORMAL[scheme] * layer.weight.norm()
    plain = nn.Linear(128, 6).requires_grad_(False)
    plain.load_state_dict({"weight": quantized.weight, "bias": layer.bias})
    inputs = torch.randn(2, 5, 128, dtype=dtype)
    saved: list[Tensor] = []
    found, wanted = (inputs.clone().requires_grad_() for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = quantized.to(dtype)(found)
    out.square().sum().backward()
    product = plain.to(dtype)(wanted)
    product.square().sum().backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(out, product, **tolerance)
    torch.testing.assert_close(found.grad, wanted.grad, **tolerance)
    assert out.dtype is dtype and {tensor.dtype for tensor in saved} == {torch.uint8, torch.int32}


@needs_hqq
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_those_of_hqqs_own_layer(bits: int) -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    layer = nn.Linear(192, 32)
    config = BaseQuantizeConfig(nbits=bits, group_size=64)
    theirs = HQQLinear(layer, config, del_orig=False, compute_dtype=torch.float32, device="cpu")
    ours = QuantizedLinear(layer, SCHEMES[f"hqq{bits}"], CPU)
    assert torch.equal(ours.codes, theirs.W_q) and torch.equal(ours.weight, theirs.dequantize())


@every_scheme
def test_scales_keep_their_bits_where_parameters_are_cast(tmp_path: Path, scheme: str) -> None:
    """What computes in bf16 casts what is a float."""
    built = made(tmp_path)
    quantize(built.model, scheme, CPU)
    layer: Any = built.model.llm.get_submodule("model.layers.1.mlp.up_proj")
    before, seen = layer.weight, []
    batch = rows(built)[0]
    with processes(RunOptions(device="cpu")) as procs:
        parallelize(built.model, procs, dtype=torch.bfloat16)
        layer.register_forward_pre_hook(lambda module, inputs: seen.append((module.weight, inputs[0].dtype)))
        built.model(packed=batch).loss.backward()
    [(weight, dtype)] = seen
    assert dtype is torch.bfloat16 and weight.dtype is torch.float32 and torch.equal(weight, before)


# ------------------------------------------------------------------------------------------------------------ a model


@needs_hqq
def test_eight_bits_change_little(tmp_path: Path) -> None:
    ids = torch.arange(20)[None]
    logits = {}
    for scheme in ("none", "hqq8", "hqq4"):
        built = made(tmp_path)
        quantize(built.model, scheme, CPU)
        logits[scheme] = built.model.eval().llm(input_ids=ids).logits.detach()
    error = {s: float((logits[s] - logits["none"]).norm() / logits["none"].norm()) for s in ("hqq8", "hqq4")}
    assert error["hqq8"] < 0.02 and error["hqq4"] > 0.1


@needs_hqq
def test_linear_layers_of_decoder_layers_are_quantized_and_nothing_else(tmp_path: Path) -> None:
    built = made(tmp_path)
    before = dict(built.model.named_parameters())
    found = quantize(built.model, "hqq4", CPU)
    assert found is not None and len(found.layers) == 14 and not found.left
    assert "hqq4, 0.3277 MB in 0.0512 MB: 2 x model.layers.*.self_attn.q_proj" in found.summary()
    after = dict(built.model.named_parameters())
    assert {name.removesuffix(".weight") for name in before.keys() - after.keys()} == {
        f"llm.{path}" for path in found.layers
    }
    assert all(after[name] is before[name] for name in before.keys() & after.keys())
    assert "llm.lm_head.weight" in built.model.state_dict()


@four_bits
def test_a_layer_whose_codes_cannot_be_paired_is_left(tmp_path: Path, scheme: str) -> None:
    """Two codes of four bits are one byte, of rows that lie half a weight apart."""
    built = made(tmp_path)
    built.model.llm.set_submodule("model.layers.0.mlp.gate_proj", nn.Linear(64, 3))
    found = quantize(built.model, scheme, CPU)
    assert found is not None and found.left == ("model.layers.0.mlp.gate_proj",) and len(found.layers) == 13


@needs_hqq
def test_the_table_counts_weights_and_names_the_scheme(tmp_path: Path) -> None:
    def table(model: BeniForConditionalGeneration) -> dict[str, freeze.FreezeRow]:
        return {row.part: row for row in freeze.freeze_table(model, OptimConfig(), {})}

    built = made(tmp_path)
    before = table(built.model)
    quantize(built.model, "hqq4", CPU)
    after = table(built.model)
    assert [(part, row.parameters) for part, row in after.items()] == [(p, row.parameters) for p, row in before.items()]
    assert before["llm"].trainable and not after["llm"].trainable
    assert after["llm"].origin == "random, hqq4" and after["connector"] == before["connector"]


@every_scheme
def test_the_checksum_reads_every_bit_that_is_kept(tmp_path: Path, scheme: str) -> None:
    built = made(tmp_path)
    quantize(built.model, scheme, CPU)
    freeze.apply(built.model, freeze.freeze_table(built.model, OptimConfig(), {}))
    before = freeze.frozen_checksum(built.model)
    [layer, *_] = quantized_layers(built.model).values()
    for parameter in (layer.codes, layer.scales):
        parameter.data.view(-1)[-1] ^= 1
        assert freeze.frozen_checksum(built.model) != before
        parameter.data.view(-1)[-1] ^= 1
    assert freeze.frozen_checksum(built.model) == before


@four_bits
@pytest.mark.parametrize("kind", ["full", "selective"])
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_recomputed_blocks_give_the_same_bits(tmp_path: Path, scheme: str, kind: str, adapter: str) -> None:
    found = []
    for recomputed in ("none", kind):
        built = adapted(tmp_path, scheme, adapter)
        checkpoint_activations(built.model, RunOptions(activation_checkpointing=recomputed))  # type: ignore[arg-type]
        built.model(packed=rows(built)[0]).loss.backward()
        found.append({name: p.grad for name, p in built.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any("lora_A" in name for name in found[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- a run


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        *(_needs("hqq4", kind) for kind in ("lora", "rslora", "dora", "none")),
        _needs("hqq8", "lora"),
        *(_needs("nf4", kind) for kind in ("dora", "none")),
    ],
)
def test_a_run_moves_no_bit_of_the_base_and_saves_what_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, kind: str
) -> None:
    told: list[tuple[nn.Module, dict[str, Tensor]]] = []
    watch(monkeypatch, lambda model: told.append((model, kept(model))))
    result = train(small(tmp_path / "run", scheme, kind, optim={"steps": 8, "lr": 1e-2}))
    [(model, before)] = told
    after = kept(model)
    assert len(before) == 28
    inside = "_proj." if kind == "none" else "_proj.base_layer."
    assert all(torch.equal(after[name.replace("_proj.", inside)], value) for name, value in before.items())
    first, *_, last = losses(tmp_path / "run")
    assert last < 0.9 * first
    moved = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert len(moved) == (0 if kind == "none" else 14) and all(p.abs().max() > 0 for p in moved)
    assert ("llm.adapter" in result["parameters"]["per_part"]) == (kind != "none")
    ids = torch.arange(12)[None]
    trained: Any = model.eval()
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "run/model")
    assert not [name for name in weights(tmp_path / "run") if name.endswith(("codes", "scales"))]
    wanted = trained.llm(input_ids=ids).logits
    torch.testing.assert_close(saved.llm(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)


@needs_hqq
def test_adapters_load_by_themselves_around_the_quantized_base(tmp_path: Path) -> None:
    train(small(tmp_path / "run", "hqq4", "dora", optim={"steps": 6, "lr": 1e-2}))
    train(small_run(tmp_path / "start", llm=LLM, optim={"steps": 1, "lr": 0.0}))  # the same first weights
    start, trained = (AutoModelForImageTextToText.from_pretrained(tmp_path / n / "model") for n in ("start", "run"))
    quantize(start, "hqq4", CPU)
    ids = torch.arange(12)[None]
    wrapped = PeftModel.from_pretrained(start.llm, str(tmp_path / "run/adapters/llm")).eval()
    wanted = trained.llm(input_ids=ids).logits
    torch.testing.assert_close(wrapped(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)


@four_bits
def test_checkpoints_hold_what_is_trained_and_go_on_with_the_same_bits(tmp_path: Path, scheme: str) -> None:
    changes: dict[str, Any] = {"peft": {"peft_dropout": 0.3}}  # which draws from the generator that is restored
    run = {"checkpoint_every": 2}
    train(small(tmp_path / "run", scheme, "dora", run=run, **changes))
    whole = weights(tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    held = FileSystemReader(folder / "step-00000002").read_metadata().state_dict_metadata
    assert any("lora_A" in name for name in held) and not [name for name in held if "base_layer" in name]
    (folder / "latest").write_text("step-00000002")
    train(small(tmp_path / "run", scheme, "dora", run={**run, "resume": "auto"}, **changes))
    again = weights(tmp_path / "run")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@needs_hqq
@pytest.mark.parametrize("own", ["codes", "scales"])
def test_a_checkpoint_beside_another_base_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    run = {"checkpoint_every": 2}
    train(small(tmp_path / "run", "hqq4", run=run))

    def change(model: nn.Module) -> None:
        [layer, *_] = quantized_layers(model).values()
        getattr(layer, own).data[0, 0] ^= 1

    watch(monkeypatch, change)
    with pytest.raises(CheckpointError, match="was made with frozen weights"):
        train(small(tmp_path / "run", "hqq4", run={**run, "resume": "auto"}))


def _train(out: str, scheme: str, kind: str, run: dict[str, Any]) -> None:
    train(small(Path(out), scheme, kind, run={"out": out, **run}))


@pytest.mark.parametrize(("scheme", "kind"), [_needs("hqq4", "dora"), _needs("nf4", "lora")])
def test_two_processes_equal_one_with_activation_checkpointing(tmp_path: Path, scheme: str, kind: str) -> None:
    _train(str(tmp_path / "one"), scheme, kind, {})
    run_ranks(_train, 2, str(tmp_path / "two"), scheme, kind, {"activation_checkpointing": "full"})
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


@four_bits
def test_bf16_trains_on_the_same_base(tmp_path: Path, scheme: str) -> None:
    for dtype in ("fp32", "bf16"):
        run = {"out": str(tmp_path / dtype), "dtype": dtype}
        train(small(tmp_path / dtype, scheme, "dora", run=run, peft={"peft_targets": r".*q_proj"}))
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), rel=2e-2)
    fp32, bf16 = weights(tmp_path / "fp32"), weights(tmp_path / "bf16")
    untouched = [name for name in fp32 if name.startswith("llm.") and "q_proj" not in name]
    assert len(untouched) > 12 and all(torch.equal(fp32[name], bf16[name]) for name in untouched)


@needs_hqq
def test_what_was_quantized_is_told_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also a layer that was left out: 48 inputs are no whole number of groups. It has adapters all the same."""
    llm = LLM | {"ff_width": 48}
    train(small(tmp_path / "run", "hqq4", llm=llm, run={"out": str(tmp_path / "run"), "dry_run": True}))
    left = "left as they are, without 64 · n inputs and 2 · n outputs: 2 x model.layers.*.mlp.down_proj\n"
    said = capsys.readouterr().out
    assert "quantized: llm in hqq4, 0.1802 MB in 0.02816 MB: 2 x model.layers.*.self_attn.q_proj, " in said
    assert left in said and "frozen           –      –  random, hqq4" in said
    train(small(tmp_path / "run", "hqq4", llm=llm))
    stored = json.loads((tmp_path / "run/config.json").read_text())
    found = stored["quantized"]["llm"]
    assert found["scheme"] == "hqq4" and len(found["layers"]) == 12 and len(stored["adapted"]["llm"]) == 14
    assert found["left"] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert found["bytes_before"] == 180224 and found["bytes_after"] == 180224 // 4 * 5 // 8
    assert run_config_from_dict(stored).peft.quant == "hqq4"
    assert left in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- refusals


def test_training_a_quantized_base_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--train llm --quant nf4: quantized weights cannot be .* --peft lora"):
        train(small(tmp_path / "run", "nf4", "none", optim={"train": ["llm"]}, data={"data": ["llava:missing.json"]}))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    package, extra = SCHEMES[scheme].package, SCHEMES[scheme].extra
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{scheme} needs the package {package}: pip install -e '\.\[{extra}\]'"):
        train(small(tmp_path / "run", scheme))


def test_a_run_without_quantization_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in SCHEMES.values():
        for name in [m for m in sys.modules if m.partition(".")[0] == scheme.package]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, scheme.package, None)
    train(small_run(tmp_path / "run"))
    assert json.loads((tmp_path / "run/config.json").read_text())["quantized"] == {}


def test_a_model_without_a_layer_that_fits_is_refused(tmp_path: Path) -> None:
    built = made(tmp_path, width=32, ff_width=48)
    with pytest.raises(ConfigError, match=r"'model\.layers\.0\.self_attn\.q_proj' is Linear\(in_features=32"):
        quantize(built.model, "hqq4", CPU)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=300, n_positions=64)
    built.model.llm = GPT2LMHeadModel(config)
    with pytest.raises(ConfigError, match=r"'transformer\.h\.0\.attn\.c_attn' is Conv1D"):
        quantize(built.model, "hqq4", CPU)
