"""One process loads; the others have no memory for weights until these are handed over, unit by unit."""

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from beni.config import RunOptions
from beni.errors import BeniError, ConfigError, PluginError
from beni.interfaces import Provenance
from beni.model.build import build, hollow
from beni.model.modeling import BeniForConditionalGeneration
from beni.processes import Processes, processes
from beni.testing.launch import run_ranks
from beni.training import freeze, parallel
from beni.training.adapters import add_adapters
from beni.training.loading import handed_over, load_once
from beni.training.quantize import quantize
from beni.training.run import train
from beni_plugins.connectors.mlp import Mlp, MlpConfig
from beni_plugins.llms.tiny import TinyLlama
from tests.training.small import ENCODER, FUSIONS, small_run

TEXTS = ["what is it? three cats"] * 3
WIDE = {"name": "tiny", "width": 64, "layers": 2, "heads": 2, "ff_width": 128}
"""Whose widths are whole numbers of groups of a quantized base."""
MODELS: dict[str, dict[str, Any]] = {
    **FUSIONS,
    "several": {"encoders": {"a": ENCODER, "b": {**ENCODER, "width": 24}}, "connector": {"name": "sva"}},
    "adapted": {"peft": {"peft": "dora", "peft_encoder": "lora"}},
}
ALONE = Processes(0, 1, torch.device("cpu"), None)


def _loaded(tables: dict[str, Any], procs: Processes) -> tuple[BeniForConditionalGeneration, int]:
    """A model as a run prepares it, and the checksum of what is frozen in it."""
    config = small_run(Path("unused"), **tables)
    built = load_once(config, TEXTS, procs)
    quantize(built.model, config.peft.quant, procs.device)
    add_adapters(built.model, config.peft)
    assert all(tensor.is_meta != procs.is_main for tensor in built.model.state_dict().values())
    parallel.parallelize(built.model, procs)
    freeze.apply(built.model, freeze.freeze_table(built.model, config.optim, {}))
    return built.model, freeze.frozen_checksum(built.model)


def _load_in_two(out: str, tables: dict[str, Any]) -> None:
    with processes(RunOptions(device="cpu")) as procs:
        model, checksum = _loaded(tables, procs)
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        buffers = [dict(model.named_buffers())] * procs.is_main or [None]
        for name, buffer in (procs.from_main(buffers[0])).items():
            assert torch.equal(buffer, dict(model.named_buffers())[name])
        total = int(procs.sum(checksum)[0]) % freeze.CHECKSUMS
        if procs.is_main:
            torch.save({"state": state, "buffers": buffers[0], "checksum": total}, out)


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_have_the_weights_of_one(tmp_path: Path, name: str) -> None:
    _compare(tmp_path / "two.pt", MODELS[name])


def test_a_quantized_base_with_adapters_is_handed_over(tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    for kind in ("lora", "dora"):
        _compare(tmp_path / f"{kind}.pt", {"llm": WIDE, "peft": {"quant": "hqq4", "peft": kind}})


def _compare(out: Path, tables: dict[str, Any]) -> None:
    run_ranks(_load_in_two, 2, str(out), tables)
    found = torch.load(out, weights_only=True)
    model, checksum = _loaded(tables, ALONE)
    state = model.state_dict()
    assert found["state"].keys() == state.keys()
    assert all(torch.equal(found["state"][name], value) for name, value in state.items())
    buffers = dict(model.named_buffers())
    assert found["buffers"].keys() == buffers.keys()
    assert all(torch.equal(found["buffers"][name], value) for name, value in buffers.items())
    assert found["checksum"] == checksum


def _bytes_in_memory() -> int:
    """Of all tensors of this process that have memory."""
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and not each.is_meta]
    local = [each.to_local() if hasattr(each, "to_local") else each for each in tensors]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in local}.values())


def _measure(out: str) -> None:
    """Load a model; the most that this process had of it in memory goes to a file, beside the largest unit."""
    tables = {"llm": {"name": "tiny", "width": 128, "layers": 8, "heads": 2, "ff_width": 512}}
    with processes(RunOptions(device="cpu")) as procs:
        before = _bytes_in_memory()
        built = load_once(small_run(Path("unused"), **tables), TEXTS, procs)
        sizes = {id(p): p.nbytes for p in built.model.parameters()}
        most, original, largest = [_bytes_in_memory()], parallel.fully_shard, [0]

        def shard(unit: nn.Module, **options: Any) -> None:
            largest.append(sum(p.nbytes for p in unit.parameters() if not hasattr(p, "to_local")))
            most.append(_bytes_in_memory())
            original(unit, **options)

        parallel.fully_shard = shard  # type: ignore[assignment]
        parallel.parallelize(built.model, procs)
        found = {"most": max(most) - before, "whole": sum(sizes.values()), "unit": max(largest)}
        torch.save(found, f"{out}/{procs.rank}.pt")


def test_only_the_first_process_ever_holds_a_whole_model(tmp_path: Path) -> None:
    run_ranks(_measure, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["whole"] > 8 * first["unit"]
    assert first["most"] >= first["whole"]
    assert second["most"] <= second["whole"] / 2 + 1.1 * second["unit"]


class Tied(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4)
        self.outer = nn.Linear(width, 4, bias=False)
        self.outer.weight = self.inner.weight
        self.register_buffer("step", torch.zeros(()), persistent=False)


def test_tied_tensors_stay_one() -> None:
    with torch.device("meta"):
        model = Tied()
    units = list(handed_over(model, [model], ALONE))
    assert units == [model] and model.outer.weight is model.inner.weight
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_a_tensor_that_nobody_can_hand_over_is_named() -> None:
    with torch.device("meta"):
        model = Tied()
        model.inner.table = torch.ones(3)
    with pytest.raises(PluginError, match=r"'inner\.table' \(Linear\) is or holds a tensor that is neither a param"):
        list(handed_over(model, [model], ALONE))
    model.inner.table = {"rows": [model.inner.table]}
    with pytest.raises(PluginError, match=r"'inner\.table' \(Linear\) is or holds"):
        list(handed_over(model, [model], ALONE))


def _build_unlike() -> None:
    with processes(RunOptions(device="cpu")) as procs:
        model = Tied(3 + procs.rank)
        with pytest.raises(PluginError, match=r"process 1 built another .*'inner\.weight' is 4×4 .* on process 0 4×3"):
            list(handed_over(model, [model], procs))


def test_models_that_differ_are_told_apart_on_every_process() -> None:
    run_ranks(_build_unlike, 2)


class Scaled(Mlp):
    """Reads a number from its weights, of which nobody else knows."""

    def __init__(self, config: Any, encoders: Any, out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.factor = 1.0

    def load_pretrained(self) -> Provenance | None:
        self.factor = 3.0
        return None


def _fail_alike(out: str, changes: dict[str, Any], error: type[BeniError], match: str) -> None:
    with pytest.raises(error, match=match):
        train(small_run(Path(out), **changes))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (
            {"connector": {"name": "tests.training.test_loading:Scaled"}},
            PluginError,
            r"process 1 built another model .*'connector\.factor' is 1\.0, on process 0 3\.0",
        ),
        ({"optim": {"init": "no/model"}}, ConfigError, "no/model"),
        ({"llm": {"name": "tests.training.test_loading:Local"}}, PluginError, "its tokenizer or its conf.*local"),
    ],
)
def test_what_is_wrong_is_told_by_every_process(
    tmp_path: Path, changes: dict[str, Any], error: type[BeniError], match: str
) -> None:
    run_ranks(_fail_alike, 2, str(tmp_path / "run"), changes, error, match)


class Local(TinyLlama):
    """Its tokenizer holds what cannot leave the process."""

    def tokenizer(self, texts: Any) -> Any:
        made = super().tokenizer(texts)
        made.note = lambda: None  # type: ignore[attr-defined]
        return made


@dataclass(frozen=True, slots=True)
class TableConfig(MlpConfig):
    table: str = ""
    """A file that is read when the connector is built."""


class Tabled(Mlp):
    Config = TableConfig

    def __init__(self, config: Any, encoders: Any, out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.factor = float(Path(config.table).read_text())


def _train(out: str, changes: dict[str, Any]) -> None:
    train(small_run(Path(out), **changes))


def test_files_that_a_part_is_built_from_are_found_by_every_process(tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text("2")
    part = {"name": "tests.training.test_loading:Tabled", "table": str(tmp_path / "table.txt")}
    run_ranks(_train, 2, str(tmp_path / "run"), {"connector": part, "optim": {"steps": 1}})
    assert json.loads((tmp_path / "run/model/config.json").read_text())["connector"]["table"] == "table.txt"


def test_a_hollow_model_is_the_same_model_without_memory(tmp_path: Path) -> None:
    config = small_run(tmp_path, **FUSIONS["xattn"])
    built = build(config, TEXTS)
    empty = hollow(built.model.config, built.tokenizer, built.loaded, config.batch.row_tokens)
    wanted, found = (dict(each.model.named_parameters()) for each in (built, empty))
    assert {name: value.shape for name, value in wanted.items()} == {name: value.shape for name, value in found.items()}
    assert all(value.is_meta for value in found.values())
    assert empty.composer.max_tokens == built.composer.max_tokens == config.batch.row_tokens
