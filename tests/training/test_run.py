"""A run from configuration to report: what it leaves behind, and that nothing of it is left to chance."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from beni.cli.commands import evaluate
from beni.data import batch
from beni.data.spec import judged
from beni.data.template import template_source
from beni.errors import BeniError, CheckpointError, ConfigError, DataError, ImageError
from beni.eval.answers import read_answers
from beni.eval.captions import bleu4, references
from beni.eval.saved import load_saved
from beni.model.build import build
from beni.sample import ImageRef
from beni.training import callbacks, freeze
from beni.training.run import train
from tests.training.small import FUSIONS, SHAPES, small_run, text_file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_config_metrics_result_report_checkpoint_and_model(tmp_path: Path) -> None:
    result = train(small_run(tmp_path / "run"))
    folder = tmp_path / "run"
    files = ("config.json", "metrics.jsonl", "result.json", "report.html", "checkpoints/latest", "model/config.json")
    for name in files:
        assert (folder / name).is_file(), name
    stored = json.loads((folder / "result.json").read_text())
    assert stored["steps"] == 4 == result["steps"]
    figures = ("accuracy", "accuracy_blind", "eval_loss", "samples_per_s", "tokens_per_s", "peak_memory_bytes")
    for name in figures:
        assert isinstance(stored[name], float | int), name
    items = read_answers(folder / "predictions.jsonl")
    assert len(items) == sum(each["items"] for each in stored["evaluations"].values())
    assert sum(item.score for item in items) == pytest.approx(stored["accuracy"] * len(items))
    assert sum(item.blind_score for item in items) == pytest.approx(stored["accuracy_blind"] * len(items))
    assert stored["parameters"]["total"] == sum(stored["parameters"]["per_part"].values())
    assert stored["visual_tokens_per_image"] == 16
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert any("val_loss" in line for line in lines)
    config = json.loads((folder / "config.json").read_text())
    assert config["connector"]["origin"] == {
        "class": "beni_plugins.connectors.mlp:Mlp",
        "distribution": "beni",
        "version": config["connector"]["origin"]["version"],
    }


def test_captions_are_judged_by_themselves_and_as_evaluate_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words that are rare in one evaluation are not in another: each is a corpus of its own."""
    said = [
        ("a red ball", "a ball is red"),
        ("two green cubes", "cubes"),
        ("a blue cone", "one cone, blue"),
        ("no", "a dog"),
    ]
    for name in ("one", "two"):
        talk = [
            {
                "conversations": [{"from": "human", "value": f"{name} {n}?"}, {"from": "gpt", "value": a}],
                "answers": [a, b],
            }
            for n, (a, b) in enumerate(said[:3] if name == "one" else said[1:])
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(talk))
    specs = [f"llava:{tmp_path / name}.json?metric=caption" for name in ("one", "two")]
    learned = {"data": [spec.partition("?")[0] for spec in specs], "eval_data": [*specs, SHAPES], "max_new_tokens": 8}
    result = train(small_run(tmp_path / "run", data=learned, optim={"steps": 60, "lr": 1e-2}))
    figures = [result["evaluations"][spec]["cider"] for spec in specs]
    assert result["cider"] == pytest.approx(sum(figures) / 2) and result["cider"] > 0.1, "nothing was learned"
    assert result["bleu4"] > 0 and result["accuracy"] is not None and result["cider_blind"] is not None
    items = read_answers(tmp_path / "run" / "predictions.jsonl")
    assert [item.metric for item in items[:7]] == ["caption"] * 6 + ["exact"]
    assert [item.answers for item in items[:3]] == said[:3], "figures can be computed again from the file alone"
    wanted = [references(item.target, item.answers) for item in items[:6]]
    assert bleu4([item.prediction for item in items[:6]], wanted) == pytest.approx(result["bleu4"])
    capsys.readouterr()
    evaluate(["--model", str(tmp_path / "run/model"), "--max-new-tokens", "8", "--data", *specs], "evaluate")
    told = json.loads(capsys.readouterr().out)
    assert [told["evaluations"][spec]["cider"] for spec in specs] == pytest.approx(figures, rel=1e-4)
    assert (told["cider"], told["bleu4"]) == pytest.approx((result["cider"], result["bleu4"]), rel=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path, fusion: str) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(small_run(tmp_path / name, run={"out": str(tmp_path / name), "seed": seed}, **FUSIONS[fusion]))
    assert same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same_bits(weights(tmp_path / "a"), weights(tmp_path / "c"))
    judged = [[item.id for item in read_answers(tmp_path / name / "predictions.jsonl")] for name in "ac"]
    assert judged[0] == judged[1], "whatever the seed, the same items"


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    for workers in (0, 2):
        out = tmp_path / str(workers)
        train(small_run(out, data={"workers": workers, "augment": 0.1}, optim={"steps": 3}))
    assert same_bits(weights(tmp_path / "0"), weights(tmp_path / "2"))


def train_whole_and_in_parts(step: int, folder: Path, changes: dict[str, Any]) -> None:
    """The run `whole`, and the run `part`, which is interrupted behind a step and continued: the same weights."""
    train(small_run(folder / "whole", **changes))
    stopped = small_run(folder / "part", run={"checkpoint_every": 2}, **changes)
    with pytest.raises(KeyboardInterrupt):
        stop_after(step, stopped)
    train(small_run(folder / "part", run={"checkpoint_every": 2, "resume": "auto"}, **changes))
    assert same_bits(weights(folder / "whole"), weights(folder / "part"))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, fusion: str) -> None:
    changes = dict(FUSIONS[fusion], optim={"steps": 6}, data={"augment": 0.1})
    train_whole_and_in_parts(5, tmp_path, changes)
    whole, part = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "part"))
    losses = [[json.loads(line)["loss"] for line in lines if '"loss"' in line] for lines in (whole, part)]
    assert losses[0] == losses[1]


def stop_after(steps: int, config: object) -> None:
    """Run until a step has been logged, then stop as Ctrl-C would."""
    from beni.training import metrics

    class Stopping(metrics.Metrics):
        def log(self, step: int, **values: object) -> None:
            super().log(step, **values)
            if step == steps:
                raise KeyboardInterrupt

    patch = pytest.MonkeyPatch()
    patch.setattr("beni.training.callbacks.Metrics", Stopping)
    try:
        train(config)  # type: ignore[arg-type]
    finally:
        patch.undo()


def test_checkpoints_of_another_run_are_refused_by_what_differs(tmp_path: Path) -> None:
    train(small_run(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"made with other options \(--steps 4, now 8\): going on"):
        train(small_run(tmp_path / "run", optim={"steps": 8}, run={"out": str(tmp_path / "run"), "resume": "auto"}))


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    train(small_run(tmp_path / "run", run={"checkpoint_every": 2}))
    folder = tmp_path / "run" / "checkpoints"
    newest = folder / (folder / "latest").read_text()
    shard = next(newest.glob("*.distcp"))
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=rf"{shard.name} has changed; continue from step-00000002"):
        train(small_run(tmp_path / "run", run={"checkpoint_every": 2, "resume": "auto"}))


def test_frozen_parts_do_not_move_and_trained_ones_do(tmp_path: Path) -> None:
    train(small_run(tmp_path / "start", optim={"steps": 1, "lr": 0.0}))
    train(small_run(tmp_path / "run", optim={"steps": 3, "train": ["connector", "encoder"]}))
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"encoders", "connector"}


def test_frozen_parts_stay_in_evaluation_mode(tmp_path: Path) -> None:
    config = small_run(tmp_path, optim={"train": ["connector"]})
    built = build(config, ["what"])
    freeze.apply(built.model, freeze.freeze_table(built.model, config.optim, {}))
    built.model.train()
    assert built.model.connector.training
    assert not built.model.llm.training and not built.model.encoders["main"].training


def test_training_learns(tmp_path: Path) -> None:
    result = train(small_run(tmp_path / "run", optim={"steps": 60, "lr": 3e-3}))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert losses[-1] < 0.5 * losses[0]
    assert result["skipped_samples"] == 0


def test_text_alone_trains_every_part_without_a_gradient_for_images(tmp_path: Path) -> None:
    spec = text_file(tmp_path)
    result = train(small_run(tmp_path / "run", data={"data": [spec], "eval_data": [spec]}, optim={"steps": 2}))
    assert result["visual_tokens_per_image"] is None
    assert 0 < result["padding_fraction"] < 0.5


def test_bad_images_are_skipped_and_listed_or_stop_the_run(tmp_path: Path) -> None:
    good = _two_images(tmp_path)
    spec = {"data": [f"llava:{good}"], "eval_data": ["shapes?images=10"]}
    result = train(small_run(tmp_path / "skip", data=spec, optim={"steps": 2}))
    assert result["skipped"] == [{"id": "broken", "reason": result["skipped"][0]["reason"]}]
    assert "no.png" in result["skipped"][0]["reason"]
    with pytest.raises(DataError, match=r"broken.*no\.png"):
        train(small_run(tmp_path / "error", data={**spec, "on_bad_sample": "error"}, optim={"steps": 2}))


def test_a_run_of_which_nothing_can_be_read_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}]
    items = [{"id": f"n{n}", "image": f"{n}-gone.png", "conversations": talk} for n in range(8)]
    (tmp_path / "bad.json").write_text(json.dumps(items))
    data = {"data": [f"llava:{tmp_path / 'bad.json'}"], "eval_data": ["shapes?images=10"]}
    train(small_run(tmp_path / "plan", data=data, run={"dry_run": True}))
    assert "left out: 'n" in (said := capsys.readouterr().out) and "gone.png" in said
    for resume in ("never", "auto"):  # what a checkpoint was made of is not forgotten
        with pytest.raises(DataError, match=r"no sample could be trained on: \d samples left out; 'n\d': .*gone\.png"):
            train(small_run(tmp_path / "run", data=data, run={"checkpoint_every": 2, "resume": resume}))
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.setattr(callbacks, "ENOUGH_BAD", 2)
    with pytest.raises(DataError, match="2 samples left out"):
        train(small_run(tmp_path / "early", data=data, batch={"rows": 1, "row_images": 1}))
    assert len((tmp_path / "early" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_run_that_begins_with_what_cannot_be_read_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = batch.load_image
    asked: list[ImageRef] = []

    def load(ref: ImageRef) -> Image.Image:
        asked.append(ref)
        if ref.key == asked[0].key:
            raise ImageError("gone")
        return read(ref)

    monkeypatch.setattr(batch, "load_image", load)
    result = train(small_run(tmp_path / "run", batch={"rows": 1, "row_images": 1}))
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["samples_per_s"] == 0 and result["skipped_samples"] and result["samples_per_s"] > 0


def test_a_run_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_run(tmp_path / "run", optim={"steps": 1}))
    said = capsys.readouterr()
    assert said.out.startswith(f"run in {tmp_path / 'run'}\n")
    assert f"wrote {tmp_path / 'run' / 'report.html'}, and the model to {tmp_path / 'run' / 'model'}" in said.err


def _two_images(folder: Path) -> Path:
    Image.new("RGB", (20, 20), "red").save(folder / "yes.png")
    items = [
        {
            "id": name,
            "image": image,
            "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}],
        }
        for name, image in (("whole", "yes.png"), ("broken", "no.png"))
    ]
    (folder / "two.json").write_text(json.dumps(items))
    return folder / "two.json"


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    train(small_run(tmp_path / "run", optim={"steps": 1}))
    with pytest.raises(ConfigError, match="holds a run already: choose another folder, or continue it"):
        train(small_run(tmp_path / "run", optim={"steps": 1}))
    with pytest.raises(ConfigError, match=r"of other options \(--steps 1, now 2; --lr 0\.001, now 0\.01\): choose"):
        train(small_run(tmp_path / "run", optim={"steps": 2, "lr": 1e-2}))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(ConfigError, match="or begin it anew with --resume auto"):
        train(small_run(tmp_path / "run", optim={"steps": 1}))
    assert train(small_run(tmp_path / "run", optim={"steps": 1}, run={"resume": "auto"}))["steps"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"train": ["conector"]}}, "did you mean connector"),
        ({"data": {"data": ["llava:nowhere.json"]}}, r"no file nowhere\.json"),
        ({"data": {"data": ["shapes?split=nowhere"]}}, "no split 'nowhere'"),
        ({"data": {"weights": [1.0, 2.0]}}, "1 sources, 2 weights"),
        ({"run": {"resume": "nowhere"}}, "no checkpoint folder"),
        ({"fusion": {"name": "xattn", "every": 5}}, "wants a block before every 5th layer"),
        ({"data": {"template": "nowhere"}}, "--template nowhere: neither one of plain"),
        ({"data": {"data": ["shapes?template=vicunna"]}}, r"data 'shapes\?template=vicunna'.*did you mean vicuna"),
        ({"data": {"data": ["shapes?loss_weight=-0.5"]}}, r"loss_weight is '-0.5'; it must be a number, at least 0"),
        ({"data": {"eval_data": ["shapes?template=no"]}}, "template no: neither one of plain"),
        ({"data": {"eval_data": ["shapes?metric=bleu"]}}, "metric is 'bleu'; it can be exact, vqa, choice, caption"),
        (
            {"data": {"eval_data": ["shapes?images=40&metric=choice"]}},
            "metric=choice takes the likeliest of its choices",
        ),
    ],
)
def test_mistakes_are_told_before_training(tmp_path: Path, changes: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(BeniError, match=message):
        train(small_run(tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(small_run(tmp_path / "run", run={"dry_run": True, "out": str(tmp_path / "run")}))
    assert result["steps"] == 4
    said = capsys.readouterr().out
    assert "encoder.main" in said and "plan: 4 steps" in said
    assert (tmp_path / "run" / "sample.html").is_file()
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_dry_run_says_what_each_source_is_trained_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = text_file(tmp_path)
    data = {"data": [f"{SHAPES}&template=vicuna&loss_weight=0.5", text], "template": "plain"}
    train(small_run(tmp_path / "run", data=data, batch={"order": "modality"}, run={"dry_run": True}))
    said = capsys.readouterr().out
    assert f"data {data['data'][0]}: " in said and "samples, template vicuna, loss weight 0.5\n" in said
    assert f"data {text}: 12 samples, template plain, loss weight 1\n" in said
    assert "order modality" in said


@pytest.mark.parametrize("order", ["length", "modality"])
def test_a_resumed_run_in_another_order_ends_with_the_same_bits(tmp_path: Path, order: str) -> None:
    data = {"data": [SHAPES, f"{text_file(tmp_path, 40)}?loss_weight=0.5&template=vicuna"], "workers": 2}
    changes = {"optim": {"steps": 6}, "data": data, "batch": {"row_tokens": 200, "order": order}}
    train_whole_and_in_parts(3, tmp_path, changes)


def test_the_saved_model_keeps_the_runs_template_and_reads_others_by_name(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    data = {"data": [SHAPES, f"{text}?template=plain"], "template": "chatml"}
    train(small_run(tmp_path / "run", data=data, optim={"steps": 1}))
    _, composer = load_saved(str(tmp_path / "run" / "model"), torch.device("cpu"))
    chatml, plain = (template_source(name, composer.template.tokenizer) for name in ("chatml", "plain"))
    assert composer.template.jinja == chatml != plain
    [samples] = judged([f"{text}?template=plain"], ()).values()
    read = composer.template.tokenizer.decode(composer.compose(samples[0], prompt_only=True).ids)
    assert read.strip() == "<bos>say 0 twice"
