"""Beni and transformers' own LLaVA train one function on one list of samples; figures are beni by the best other."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare import Race, summary, told
from contenders import Contest, Stretch, _native
from native import collate, twin
from samples import Sizes, write_encoder, write_samples

from beni.data.batch import pack
from beni.data.document import IGNORE
from beni.processes import processes
from beni.testing.small import make
from beni.training.prepare import prepare

SMALL = Sizes(width=32, layers=3, heads=2, patch=16, side=32, samples=16, words=12)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Contest:
    work = tmp_path_factory.mktemp("contest")
    encoder, data = write_encoder(work / "encoder", SMALL), write_samples(work / "data", SMALL)
    return Contest(str(encoder), str(data), str(work / "run"), ("--llm", "tiny"), "fp32", 4, 2)


def test_samples_are_mixed(contest: Contest) -> None:
    items = json.loads(Path(contest.data).read_text())
    images = [len(item.get("image", [])) for item in items]
    assert {0, 1, 2, 3} == set(images)
    lengths = [sum(len(turn["value"].split()) for turn in item["conversations"]) for item in items]
    assert len(set(lengths)) > 5 and items == json.loads(write_samples(Path(contest.out) / "again", SMALL).read_text())


def test_they_compute_one_function(contest: Contest) -> None:
    """Loss and gradient of a step, packed here, padded there."""
    config = contest.config()
    with processes(config.run) as procs:
        run = prepare(config, procs, None)
        model, composer = run.built.model, replace(run.built.composer, max_tokens=0)
        model.encoders.requires_grad_(False)
    with _native(contest) as native:
        chosen = next(iter(native.steps()))
        documents = [composer.compose(run.rows.sources[0][index]) for index in chosen]
        row = pack([[document] for document in documents], composer)
        ours = model.train()(packed=row).loss / row.stats.targets
        ours.backward()
        batch = collate([native.dataset[index] for index in chosen])
        theirs = native.model.train()(**batch).loss
        theirs.backward()
    assert row.stats.images and any(not document.images for document in documents), "with and without images"
    assert (batch["labels"] != IGNORE).sum() >= row.stats.targets
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    gradients = dict(native.model.named_parameters())
    for name, other in (
        ("connector.layers.0.weight", "model.multi_modal_projector.linear_1.weight"),
        ("llm.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
    ):
        found = model.get_parameter(name).grad
        torch.testing.assert_close(found, gradients[other].grad, rtol=1e-3, atol=1e-6)
    assert gradients["model.vision_tower.embeddings.patch_embedding.weight"].grad is None


def test_a_model_that_is_no_llava_has_no_twin(contest: Contest) -> None:
    built = make(fusion={"name": "xattn", "heads": 2, "head_width": 8})
    with pytest.raises(RuntimeError, match=r"no place for (encoders|fusion|new_tokens)\."):
        twin(built, contest.encoder, 0)


def test_ratios_are_by_the_best_other() -> None:
    def windows(*speeds: float, memory: int) -> list[Stretch]:
        return [Stretch(10.0, round(10 * speed), (), memory) for speed in speeds]

    races = {
        "plain": Race(windows(30, 10, 20, memory=600), windows(4, 5, 6, memory=1000)),
        "trainer": Race(windows(21, 21, 21, memory=900), windows(8, 7, 99, memory=1800)),
    }
    found = summary(races)
    assert found["samples_per_s_ratio"] == 21 / 8 and found["peak_memory_ratio"] == 0.6
    assert "speed 2.62, memory 0.60" in told(found)


@pytest.mark.slow
def test_the_whole_comparison(tmp_path: Path) -> None:
    """Small; losses of beni and of the plain loop agree, and everybody is measured."""
    small = "--llm tiny --sizes.width 64 --sizes.layers 3 --sizes.heads 2 --sizes.patch 16 --sizes.side 48"
    few = f"--sizes.samples 64 --sizes.words 20 --windows 2 --window 2 --agree 5 --out {tmp_path}"
    subprocess.run([sys.executable, ROOT / "benchmarks/compare.py", *small.split(), *few.split()], check=True)
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["agreement"]["fp32"] < 1e-4 and found["agreement"]["bf16"] < 1e-2
    assert found["races"].keys() == {"plain", "trainer"}
    assert all(len(race["beni"]["windows"]) == 2 for race in found["races"].values())
    speeds = found["trainer_by_dtype"]
    assert speeds.keys() == {"fp32", "bf16"} and speeds[found["others_dtype"]] == max(speeds.values())
    assert found["trainer_grid"].keys() == {"1", "2", "4", "8"} and found["samples_per_s_ratio"] > 0
