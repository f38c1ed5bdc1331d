"""The card of a saved model says what the run's records say, can be read by the hub's library, and its code runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText

from beni.errors import ConfigError
from beni.report import write_card
from beni.report.card import Exported, _hub_ids, metadata_of, public, write_exported_card
from beni.training.run import train
from tests.report.drawn import picture
from tests.report.test_page import ATTACK, CONFIG, RESULT
from tests.training.small import SHAPES, XATTN, small_run, text_file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was judged."""
    folder = tmp_path_factory.mktemp("cards")
    data = {"data": [SHAPES, text_file(folder)], "weights": [3.0, 1.0], "eval_data": [SHAPES]}
    train(small_run(folder / "run", data=data, optim={"train": ["connector", "fusion", "llm"]}, **XATTN))
    return folder / "run"


def card(result: dict[str, Any], config: dict[str, Any], folder: Path) -> ModelCard:
    write_card(folder / "README.md", result, config)
    return ModelCard.load(folder / "README.md")


def test_says_what_the_run_recorded(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    written = ModelCard.load(run / "model" / "README.md")
    data, text = written.data, written.text
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert {"beni", "perceiver", "xattn"} <= set(data.tags)
    assert data.license is None and data.base_model is None, "nothing is made up"
    told = [(each.dataset_name, each.metric_value, each.metric_name) for each in data.eval_results]
    assert told == [
        (name, value, f"{metric} ({judged['items']} items)")
        for name, judged in result["evaluations"].items()
        for metric, value in (
            ("accuracy", judged["accuracy"]),
            ("accuracy, images blanked", judged["blind"]["accuracy"]),
        )
    ]
    for part, count in result["parameters"]["per_part"].items():
        [row] = re.findall(rf"^\| {re.escape(part)} \|.*$", text, re.MULTILINE)
        trained = 0 if part.startswith("encoder") else count
        assert row.endswith(f"| scratch | {count:,} | {trained:,} |"), row
    assert "| `llava:text.json` | training | 25.0% |" in text
    for tag in (tag for judged in result["evaluations"].values() for tag in judged["by_tag"]):
        assert f"| – {tag} |" in text
    assert f"| steps | {result['steps']} |" in text and "| val_loss |" in text and "It needs `beni 0.1.0`" in text


def test_no_folder_of_this_machine_is_in_it(run: Path) -> None:
    assert str(run.parent) not in (run / "model" / "README.md").read_text(encoding="utf-8")


def test_its_code_runs(run: Path, tmp_path: Path) -> None:
    """As it stands, in the model's folder, in a new process."""
    folder = shutil.copytree(run / "model", tmp_path / "model")
    (folder / "picture.png").write_bytes(picture("red").data)
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout, "an answer"


def test_saving_the_model_again_leaves_it(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run / "model", tmp_path / "model")
    before = (folder / "README.md").read_bytes()
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_bytes() == before


def test_an_exported_model_tells_the_hub_the_same(run: Path, tmp_path: Path) -> None:
    original = run / "model" / "README.md"
    exported = Exported("LlavaForConditionalGeneration", "llava", 1e-7, 0.0)
    write_exported_card(tmp_path / "README.md", metadata_of(original), exported)
    written, before = ModelCard.load(tmp_path / "README.md"), ModelCard.load(original)
    assert written.data.to_dict() == before.data.to_dict() and written.data.eval_results
    assert "as `LlavaForConditionalGeneration`" in written.text and "by at most 1e-07 of the" in written.text
    assert "import beni" not in written.text
    for text in (None, "no metadata", "---\ntags: [own]\n---\n"):
        if text is not None:
            (tmp_path / "own.md").write_text(text)
        write_exported_card(tmp_path / "bare.md", metadata_of(tmp_path / "own.md"), exported)
        assert ModelCard.load(tmp_path / "bare.md").data.pipeline_tag == "image-text-to-text"
    (tmp_path / "own.md").write_text("---\ntags: [own\n---\n")
    with pytest.raises(ConfigError, match=r"own\.md: its metadata cannot be read"):
        metadata_of(tmp_path / "own.md")


def test_a_run_that_was_not_judged(tmp_path: Path) -> None:
    missing = {"accuracy": None, "accuracy_blind": None, "eval_loss": None, "evaluations": {}, "val_loss": 0.25}
    written = card(RESULT | missing, CONFIG, tmp_path)
    assert "It was not evaluated" in written.text and "| val_loss | 0.25 |" in written.text
    assert written.data.eval_results is None
    bare = card({}, CONFIG, tmp_path)
    assert "| steps | – |" in bare.text


def test_what_happened_to_parts(tmp_path: Path) -> None:
    happened = {
        "loaded": {
            "llm": {"origin": "someone/model@abc123", "sha256": ""},
            "connector": {"origin": "/home/me/runs/mine/model", "sha256": "00ff"},
            "encoder.main": {"origin": str(tmp_path), "sha256": ""},
        },
        "adapted": {"llm": ["llm.a", "llm.b"]},
        "quantized": {"llm": {"part": "llm"}},
    }
    config = CONFIG | happened | {"peft": CONFIG["peft"] | {"peft": "dora", "quant": "nf4"}}
    config["data"] = CONFIG["data"] | {"data": ["hf:someone/questions?split=train", "hf:of/others"]}
    written = card(RESULT, config, tmp_path)
    assert [each.metric_value for each in written.data.eval_results] == [0.8125, 0.5], "with the images, and blind"
    assert written.data.base_model == ["someone/model"]
    assert written.data.datasets == ["someone/questions", "of/others"]
    assert "| adapters in llm | dora of rank 16, alpha 32, in 2 layers; merged" in written.text
    assert "| quantized while it was trained | llm: nf4;" in written.text
    assert "- connector: `00ff`" in written.text and "/home/me" not in written.content


def test_what_is_in_the_data_stays_text(tmp_path: Path) -> None:
    evaluations = {
        ATTACK: RESULT["evaluations"]["easy_vqa"] | {"by_tag": {"a=b|c\n# d": {"items": 1, "accuracy": 1.0}}}
    }
    written = card(RESULT | {"evaluations": evaluations}, CONFIG, tmp_path)
    assert "<script>" not in written.text and "| – a=b\\|c # d |" in written.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("llava:/home/me/train.json?template=plain", "llava:train.json?template=plain"),
        ("webdataset:/data/{000..099}.tar", "webdataset:{000..099}.tar"),
        ("/home/me/runs/mine/model/", "model"),
        ("~/weights/projector.bin", "projector.bin"),
        ("hf:owner/name?config=a&split=b", "hf:owner/name?config=a&split=b"),
        ("llava:https://host.org/a/train.json", "llava:https://host.org/a/train.json"),
        ("hf:x?path=/home/me/a.json&b=1", "hf:x?path=a.json&b=1"),
    ],
)
def test_of_a_path_its_last_name_is_told(text: str, shown: str) -> None:
    assert public(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("llava:/home/jane doe/d/x.json?images=/data/my pictures/", "llava:x.json?images=my pictures"),
        ("llava:~me/x/y.json", "llava:y.json"),
        ("llava:../private/x.json?metric=vqa", "llava:x.json?metric=vqa"),
        ("file:///home/me/x.bin", "x.bin"),
        ("['/home/me/x', '/home/me/y']", "['x', 'y']"),
        ("//server/share/x", "x"),
        ("https://me:secret@host.org/d/x.json", "https://host.org/d/x.json"),
        ("hf:HuggingFaceM4/the_cauldron?config=vqav2", "hf:HuggingFaceM4/the_cauldron?config=vqav2"),
        ("shapes?images=40", "shapes?images=40"),
    ],
)
def test_no_folder_of_the_machine_and_no_password_is_shown(text: str, shown: str) -> None:
    assert public(text) == shown


def test_language_models_of_the_hub_are_base_models_wherever_they_were_found() -> None:
    assert _hub_ids(["hub:owner/name", "cache:owner/other", "timm:owner/third@x", "/home/owner/name"]) == [
        "owner/name",
        "owner/other",
        "owner/third",
    ]


def test_captions_are_not_told_as_accuracies(tmp_path: Path) -> None:
    captions = {"items": 9, "accuracy": None, "cider": 1.0567, "cider_interval": [0.9, 1.2], "bleu4": 0.3123}
    seen = captions | {"blind": {"cider": 0.05, "bleu4": 0.0}}
    written = card(RESULT | {"accuracy": None, "evaluations": {"coco": seen}}, CONFIG, tmp_path)
    assert "| coco | CIDEr-D | 105.7 (BLEU-4 31.2) | 90.0 – 120.0 | 5.0 | 9 |" in written.text
    assert "accuracy" not in written.text
    assert {(each.metric_type, each.metric_value) for each in written.data.eval_results} == {
        ("cider", 1.0567),
        ("cider", 0.05),
    }
