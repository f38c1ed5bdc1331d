"""Two processes compute what one computes: losses, gradients, weights; with rows of which one rank has no image."""

import json
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from beni.data.loader import Rows
from beni.data.plan import Lengths, Member, Plan, Row
from beni.data.spec import training
from beni.model.build import build
from beni.testing.launch import run_ranks
from beni.training import loop
from beni.training.run import train
from tests.training.small import FUSIONS, SHAPES, small_run, text_file


def train_and_keep_gradients(out: str, changes: dict[str, dict[str, Any]]) -> None:
    """Train; the gradients of the first step, whole, go to OUT.pt."""
    original = loop.clip
    kept: list[torch.Tensor] = []

    def keep(parameters: list[torch.nn.Parameter], largest: float) -> torch.Tensor:
        if not kept:
            kept.extend(p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone() for p in parameters)
        return original(parameters, largest)

    loop.clip = keep
    try:
        train(small_run(Path(out), **changes))
    finally:
        loop.clip = original
    if os.environ.get("RANK", "0") == "0":
        torch.save(kept, f"{out}.pt")


@pytest.mark.parametrize(
    ("fusion", "options", "order"),
    [
        *((fusion, "", "shuffled") for fusion in FUSIONS),
        ("inline", "?loss_weight=0.3&template=vicuna", "modality"),
    ],
)
def test_two_processes_equal_one(tmp_path: Path, fusion: str, options: str, order: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        **FUSIONS[fusion],
        # rows of few tokens: in most steps one of the four rows holds only text
        "data": {"data": [SHAPES, text_file(tmp_path, 200) + options], "eval_data": [SHAPES], "workers": 0},
        "batch": {"rows": 4, "row_tokens": 100, "order": order},
        "optim": {"steps": 4},
    }
    train_and_keep_gradients(str(tmp_path / "one"), changes)
    run_ranks(train_and_keep_gradients, 2, str(tmp_path / "two"), changes)
    assert_same(tmp_path)


as_planned = Plan.step


def _unequal(self: Plan, epoch: int, step: int) -> list[Row]:
    """Of what is trained on: a row of a few pictures, and one that is ten times as long and has none."""
    if len(self.lengths) == 1:
        return as_planned(self, epoch, step)
    pictures, texts = (range(len(source.total)) for source in self.lengths)
    at = 2 * step
    return [
        tuple((Member(0, pictures[(at + n) % len(pictures)]),) for n in range(2)),
        tuple((Member(1, texts[(40 * step + n) % len(texts)]),) for n in range(40)),
    ]


def _train_unequal(out: str, changes: dict[str, dict[str, Any]]) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(Plan, "step", _unequal)
    try:
        train_and_keep_gradients(out, changes)
    finally:
        patch.undo()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_with_far_longer_rows_and_never_an_image(tmp_path: Path, fusion: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        **FUSIONS[fusion],
        "data": {"data": [SHAPES, text_file(tmp_path, 200)], "eval_data": [SHAPES], "workers": 0, "eval_limit": 2},
        "batch": {"rows": 2, "row_tokens": 1024},
        "optim": {"steps": 3},
    }
    for name, run in (("one", _train_unequal), ("two", lambda *arguments: run_ranks(_train_unequal, 2, *arguments))):
        run(str(tmp_path / name), changes | {"run": {"out": str(tmp_path / name), "eval_every": 100}})
    assert_same(tmp_path)


def test_those_rows_really_are_unequal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "step", _unequal)
    config = small_run(tmp_path, batch={"rows": 2, "row_tokens": 1024})
    sources = training([SHAPES, text_file(tmp_path, 200)])
    built = build(config, ["say"])
    rows = Rows(sources, Plan([Lengths(s, built.composer) for s in sources], (), config.batch, 0), built.composer)
    for step in range(3):
        few, many = (rows[(0, step, number)].stats for number in range(2))
        assert few.images and not many.images and many.tokens > 5 * few.tokens


def assert_same(tmp_path: Path) -> None:
    """Gradients, losses, weights and figures of the runs `one` and `two` agree."""
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(a.abs().max()) + 1e-9)
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0]["flops_per_sample"] == pytest.approx(results[1]["flops_per_sample"])
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], rel=1e-4)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[json.loads(line)["loss"] for line in log if '"loss"' in line] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_really_differ_in_modality(tmp_path: Path) -> None:
    """The parity test above is only worth something if some rank sees no image in some step."""
    config = small_run(tmp_path, batch={"rows": 4, "row_tokens": 100})
    sources = training([SHAPES, text_file(tmp_path, 200)])
    built = build(config, ["say"])
    rows = Rows(sources, Plan([Lengths(s, built.composer) for s in sources], (), config.batch, 0), built.composer)
    images = [rows[(0, step, number)].stats.images for step in range(4) for number in range(4)]
    assert 0 in images and any(images)


def _resume_on_two(out: str, changes: dict[str, dict[str, Any]]) -> None:
    train(small_run(Path(out), **changes))
    # one that outlives the group may abort the process when the interpreter ends
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").glob("*")]
    assert not [name for name in names if "gloo" in name]


def test_two_processes_resume_with_the_same_bits_and_tied_weights_stay_tied(tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {"optim": {"steps": 4}, "run": {"checkpoint_every": 2}}
    run_ranks(_resume_on_two, 2, str(tmp_path / "whole"), changes)
    folder = tmp_path / "whole" / "checkpoints"
    (folder / "latest").write_text("step-00000002")
    whole = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    changes["run"] = {"checkpoint_every": 2, "resume": "auto"}
    run_ranks(_resume_on_two, 2, str(tmp_path / "whole"), changes)
    again = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[n], again[n]) for n in whole)
    assert "llm.lm_head.weight" not in again and "llm.model.embed_tokens.weight" in again
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole" / "model")
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def _train(out: str, changes: dict[str, dict[str, Any]]) -> None:
    train(small_run(Path(out), **changes))


def _train_and_keep_words(out: str, changes: dict[str, dict[str, Any]]) -> None:
    with (Path(out) / f"said-{os.environ['RANK']}").open("w") as said, redirect_stdout(said):
        _train(out, changes)


def test_one_process_then_two_then_one_go_on_as_one_alone(tmp_path: Path) -> None:
    """The same samples in the same order, whoever computes them; losses equal to rounding."""
    changes: dict[str, dict[str, Any]] = {"optim": {"steps": 6}, "run": {"checkpoint_every": 2, "keep": 3}}
    train(small_run(tmp_path / "one", **changes))
    train(small_run(tmp_path / "changing", **changes))
    checkpoints = tmp_path / "changing" / "checkpoints"
    changes["run"]["resume"] = "auto"
    (checkpoints / "latest").write_text("step-00000002")
    run_ranks(_train_and_keep_words, 2, str(tmp_path / "changing"), changes)
    assert "going on behind step 2 with 2 processes instead of 1" in (tmp_path / "changing" / "said-0").read_text()
    (checkpoints / "latest").write_text("step-00000004")
    train(small_run(tmp_path / "changing", **changes))

    logs = {}
    for name in ("one", "changing"):
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        logs[name] = [line for line in lines if "loss" in line]
    assert [line["epoch"] for line in logs["one"]] == [line["epoch"] for line in logs["changing"]]
    assert [x["loss"] for x in logs["one"]] == pytest.approx([x["loss"] for x in logs["changing"]], rel=1e-5)
    one, changing = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "changing"))
    for name in one:
        torch.testing.assert_close(one[name], changing[name], rtol=1e-4, atol=1e-5)
    computed = json.loads((tmp_path / "changing" / "result.json").read_text())["computed"]
    assert [(part["from_step"], part["processes"]) for part in computed] == [(0, 1), (2, 2), (4, 1)]


def test_bf16_computes_near_fp32_with_fp32_masters(tmp_path: Path) -> None:
    logs = {}
    for dtype in ("fp32", "bf16"):
        train(small_run(tmp_path / dtype, run={"dtype": dtype}))
        lines = (tmp_path / dtype / "metrics.jsonl").read_text().splitlines()
        logs[dtype] = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
        saved = load_file(tmp_path / dtype / "model" / "model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert logs["bf16"] == pytest.approx(logs["fp32"], rel=0.02)
