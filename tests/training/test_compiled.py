"""Compiled blocks: the same function to rounding, with graphs that do not depend on what a row holds."""

import json
import os
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from beni.config import RunOptions
from beni.data.batch import PackedBatch, pack
from beni.errors import ConfigError
from beni.model.build import Built
from beni.testing.launch import run_ranks
from beni.testing.small import CONVERSATIONS, ENCODER, LLM, SEVERAL_LAYERS, inputs, make
from beni.training import parallel
from beni.training.compiled import compile_blocks
from beni.training.recompute import checkpoint_activations
from beni.training.run import train
from tests.training.small import FUSIONS, small_run
from tests.training.test_quantize import adapted, needs_hqq

TABLES: dict[str, dict[str, Any]] = {
    **FUSIONS,
    "sva": {"connector": {"name": "sva"}, "fusion": {"name": "sva"}},
    "deepstack": {"encoders": {"main": {**ENCODER, **SEVERAL_LAYERS}}, "fusion": {"name": "deepstack"}},
}
"""One model for each fusion."""
TRACED = "aot_eager"
"""Everything that inductor does but its code: forward and backward passes are traced, and run by torch's kernels."""


def _has_compiler() -> bool:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="needs a C++ compiler")


def graphs() -> int:
    """Compiled so far."""
    return counters["stats"]["unique_graphs"]


def made(tables: dict[str, Any]) -> Built:
    torch.manual_seed(0)
    built = make(**tables)
    built.model.requires_grad_(True).eval()
    return built


def rows(built: Built) -> list[PackedBatch]:
    """Unlike each other in length, documents, documents that share an image, images, and buckets of attention."""
    what, many, colour, text, three, turns = (built.composer.compose(sample) for sample in CONVERSATIONS)
    packings = [
        [[what, many], [three], [text]],
        [[text]],
        [[turns], [text]],
        [[what], [many], [colour], [three], [turns]],
        [[three]],
        [[what, many, colour], [turns], [three], [text], [text]],
        [[text], [text], [text], [text]],
        [[colour], [text]],
    ]
    return [pack(trees, built.composer) for trees in packings]


def step(built: Built, row: PackedBatch) -> dict[str, Tensor]:
    """Gradients, and the loss."""
    built.model.zero_grad()
    loss = built.model(packed=row).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in built.model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    scale = max(float(value.abs().max()) for value in wanted.values()) / 100  # below it, sums of larger values round
    for name, value in wanted.items():
        error = float((found[name] - value).abs().max()) / max(float(value.abs().max()), scale)
        assert error < 1e-4, f"{name} differs by {error:.1e}"


def _compare(fusion: str, kind: Any, every: int) -> None:
    """Eager and compiled blocks, in a process of its own: checks of shapes at run time would be traced with them."""
    eager, compiled = made(TABLES[fusion]), made(TABLES[fusion])
    options = RunOptions(activation_checkpointing=kind, activation_checkpointing_every=every)
    compile_blocks(compiled.model, TRACED)
    checkpoint_activations(compiled.model, options)
    assert compiled.model.state_dict().keys() == eager.model.state_dict().keys()
    counted = []
    for row in rows(eager):
        assert_near(step(compiled, row), step(eager, row))
        counted.append(graphs())
    assert counted[-1] > 0
    assert counted[3:] == [counted[3]] * len(counted[3:]), f"graphs behind each row: {counted}"
    deeper = made({**TABLES[fusion], "llm": {**LLM, "layers": 5}})
    compile_blocks(deeper.model, TRACED)
    checkpoint_activations(deeper.model, options)
    step(deeper, rows(deeper)[0])
    assert graphs() == counted[-1], "more layers need more graphs"


@pytest.mark.parametrize(
    ("fusion", "kind", "every"),
    [
        ("inline", "none", 1),
        ("xattn", "selective", 1),
        pytest.param("sva", "full", 1, marks=pytest.mark.slow),
        pytest.param("deepstack", "full", 2, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_eager_blocks_and_rows_of_any_shape_share_graphs(
    fusion: str, kind: str, every: int
) -> None:
    run_ranks(_compare, 1, fusion, kind, every)


def _compare_quantized(folder: str) -> None:
    eager, compiled = (adapted(Path(folder), "hqq4", "lora") for _ in range(2))
    compile_blocks(compiled.model, TRACED)
    for built in (eager, compiled):
        for name, parameter in built.model.named_parameters():
            parameter.requires_grad_("lora_" in name or name.startswith("connector."))
    for row in rows(eager)[:3]:
        assert_near(step(compiled, row), step(eager, row))
    assert graphs() > 0


@needs_hqq
@pytest.mark.slow
def test_adapters_in_a_quantized_base_get_the_gradients_of_eager_blocks(tmp_path: Path) -> None:
    run_ranks(_compare_quantized, 1, str(tmp_path))


@pytest.mark.parametrize("fusion", TABLES)
def test_generation_compiles_nothing(fusion: str) -> None:
    """And so gives the same bits, whatever its cache looks like."""
    eager, compiled = made(TABLES[fusion]), made(TABLES[fusion])
    compile_blocks(compiled.model, TRACED)
    answers = [
        built.model.generate(**inputs(built, CONVERSATIONS), max_new_tokens=5, do_sample=False)
        for built in (eager, compiled)
    ]
    assert torch.equal(*answers)
    assert graphs() == 0


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def assert_same_run(one: Path, other: Path) -> None:
    """Equal to rounding in what was logged and saved, which has the same names."""
    assert losses(one) == pytest.approx(losses(other), rel=1e-4)
    found, wanted = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5)


def _train(out: str, backend: str, changes: dict[str, Any]) -> None:
    """One of the processes of a run; how many graphs it made, and what it printed, go to files."""
    parallel.compile_blocks = partial(compile_blocks, backend=backend)
    with redirect_stdout(StringIO()) as said:
        train(small_run(Path(out), **changes))
    Path(f"{out}-graphs-{os.environ['RANK']}").write_text(str(graphs()))
    Path(f"{out}-said-{os.environ['RANK']}").write_text(said.getvalue())


@pytest.mark.slow
@needs_compiler
def test_a_run_with_inductor_goes_on_without(tmp_path: Path) -> None:
    """It is trained, judged, saved and continued like one of eager blocks, and told what has changed."""
    eager, compiled = tmp_path / "eager", tmp_path / "compiled"
    changes: dict[str, Any] = {"checkpoint_every": 2, "keep": 3}
    train(small_run(eager, run={"out": str(eager), **changes}))
    changes |= {"out": str(compiled)}
    run_ranks(_train, 1, str(compiled), "inductor", {"run": {"compile": True, **changes}})
    assert int((tmp_path / "compiled-graphs-0").read_text()) > 0
    assert_same_run(compiled, eager)
    (compiled / "checkpoints" / "latest").write_text("step-00000002")
    run_ranks(_train, 1, str(compiled), "inductor", {"run": {"resume": "auto", **changes}})
    said = (tmp_path / "compiled-said-0").read_text()
    assert "going on behind step 2 with eager blocks instead of compiled" in said
    assert_same_run(compiled, eager)
    computed = json.loads((compiled / "result.json").read_text())["computed"]
    assert [(part["from_step"], part["blocks"]) for part in computed] == [(0, "compiled"), (2, "eager")]


@pytest.mark.slow
def test_two_processes_equal_one_of_eager_blocks(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(small_run(one, **FUSIONS["xattn"]))
    options = {"out": str(two), "compile": True, "activation_checkpointing": "full"}
    run_ranks(_train, 2, str(two), TRACED, {**FUSIONS["xattn"], "run": options})
    assert_same_run(two, one)
    assert all(int((tmp_path / f"two-graphs-{rank}").read_text()) > 0 for rank in (0, 1))


def test_without_a_compiler_a_run_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"--compile needs a C\+\+ compiler"):
        train(small_run(tmp_path / "run", run={"compile": True}))
    assert not (tmp_path / "run").exists()
