import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from beni.config import run_config_from_dict
from beni.eval.prediction import Prediction
from beni.report import write_report
from beni.sample import ImageRef, Sample, Turn, vqa_sample
from tests.report.drawn import picture
from tests.report.pages import Page, embedded

CONFIG = run_config_from_dict({"connector": {"name": "perceiver"}, "fusion": {"name": "xattn"}}).to_dict()
ATTACK = '<script>alert("1")</script>'

RESULT: dict[str, Any] = {
    "accuracy": 0.8125,
    "accuracy_blind": 0.5,
    "eval_loss": 0.34567,
    "steps": 4321,
    "samples_per_s": 98.76,
    "tokens_per_s": 54321.0,
    "parameters": {"total": 1_438_880, "trainable": 538_880, "per_part": {"encoder.main": 900_000, "llm": 538_880}},
    "peak_memory_bytes": 3 * 2**30,
    "wall_s": 3725.0,
    "evaluations": {
        "easy_vqa": {
            "items": 16,
            "accuracy": 0.8125,
            "interval": [0.57, 0.934],
            "by_tag": {"type=colour": {"items": 10, "accuracy": 0.8, "interval": [0.49, 0.943]}},
            "unreadable": 1,
            "blind": {
                "items": 16,
                "accuracy": 0.5,
                "by_tag": {"type=colour": {"items": 10, "accuracy": 0.3}},
                "unreadable": 1,
            },
        }
    },
}
METRICS = [
    line
    for step in range(10, 310, 10)
    for line in (
        {
            "step": step,
            "time_s": 1.0,
            "loss": 1 + 1 / step,
            "grad_norm": 0.5,
            "lr": 1e-3,
            "samples_per_s": 9.0,
            "tokens_per_s": 99.0,
        },
        *([{"step": step, "time_s": 1.0, "val_loss": 1.1}] if step % 100 == 0 else []),
    )
]


def item(name: str, correct: bool, image: ImageRef | None = None) -> tuple[Sample, Prediction]:
    sample = vqa_sample(name, image or picture("red"), f"question of {name}?", "yes", {"type": "colour"})
    return sample, Prediction(name, "yes" if correct else "no", "yes", float(correct), sample.tags)


def write(tmp_path: Path, result: dict[str, Any] | None = None, metrics=(), shown=(), config=CONFIG) -> str:
    path = tmp_path / "report.html"
    write_report(path, RESULT if result is None else result, metrics, shown, config)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_it_needs_nothing_but_itself(tmp_path: Path) -> None:
    html = write(tmp_path, metrics=METRICS, shown=[item("a", True)])
    page = Page(html)
    links = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "data")
    ]
    assert links and all(link is not None and link.startswith("data:image/") for link in links)
    assert not page.all("script") and not page.all("link")
    assert "@import" not in html and "url(" not in html


def test_it_holds_the_figures(tmp_path: Path) -> None:
    text = " ".join(Page(write(tmp_path, metrics=METRICS)).text.split())
    for figure in (
        "tiny × perceiver × xattn × tiny", "81.2 %", "50.0 %", "seeing adds +31.2 points", "0.3457", "4,321", "98.76",
        "54,321", "1.44 M", "539 k trainable", "3.00 GiB", "1 h 02 min", "900,000",
    ):  # fmt: skip
        assert figure in text


def test_evaluations_come_with_their_interval_and_the_blind_accuracy(tmp_path: Path) -> None:
    text = " ".join(Page(write(tmp_path)).text.split())
    assert "easy_vqa (1 unreadable, counted as wrong) accuracy 81.2 % 57.0 – 93.4 50.0 % 16" in text
    assert "type=colour accuracy 80.0 % 49.0 – 94.3 30.0 % 10" in text


def test_curves_have_as_many_points_as_lines(tmp_path: Path) -> None:
    polylines = Page(write(tmp_path, metrics=METRICS)).all("polyline")
    assert [len((line["points"] or "").split()) for line in polylines] == [30, 3, 30, 30, 30]


@pytest.mark.parametrize(
    "where", ["question", "prediction", "target", "id", "tag", "error", "dataset", "reason", "config"]
)
def test_what_comes_from_data_is_escaped(tmp_path: Path, where: str) -> None:
    def text(name: str) -> str:
        return ATTACK if name == where else name

    sample = vqa_sample(text("id"), picture("red"), text("question"), text("target"), {text("tag"): text("tag")})
    prediction = Prediction(sample.id, text("prediction"), sample.answer, 0.0, sample.tags, text("error"))
    result = RESULT | {
        "evaluations": {text("dataset"): RESULT["evaluations"]["easy_vqa"]},
        "skipped": [{"id": "s", "reason": text("reason")}],
    }
    config = CONFIG | {"connector": CONFIG["connector"] | {"option": text("config")}}
    html = write(tmp_path, result, METRICS, [(sample, prediction)], config)
    page = Page(html)
    assert "<script" not in html
    assert page.text.count(ATTACK) + page.text.count(json.dumps(ATTACK)[1:-1]) > 0


def test_an_attack_cannot_leave_an_attribute(tmp_path: Path) -> None:
    attack = '" onload="alert(1)'
    html = write(
        tmp_path,
        shown=[
            (
                sample := vqa_sample(attack, picture("red"), attack, attack),
                Prediction(attack, attack, sample.answer, 1.0),
            )
        ],
    )
    assert all(not name.startswith("on") for _, attributes in Page(html).tags for name in attributes)


NOTHING: dict[str, Any] = {"items": 0, "accuracy": None, "by_tag": {}, "unreadable": 0}


@pytest.mark.parametrize(
    "result", [{}, dict.fromkeys(RESULT), RESULT | {"evaluations": {"empty": NOTHING | {"blind": NOTHING}}}]
)
def test_it_survives_missing_figures(tmp_path: Path, result: dict[str, Any]) -> None:
    text = Page(write(tmp_path, result)).text
    assert "None" not in text and "nan" not in text
    assert "–" in text and "No predictions." in text and "No step was logged." in text


def test_wrong_answers_come_first(tmp_path: Path) -> None:
    shown = [item("a", True), item("b", False), item("c", True), item("d", False)]
    assert re.findall(r"question of (\w)\?", write(tmp_path, shown=shown)) == ["b", "d", "a", "c"]
    assert [a["class"] for a in Page(write(tmp_path, shown=shown)).all("article")] == ["panel card wrong"] * 2 + [
        "panel card right"
    ] * 2


def test_pictures_are_embedded_small(tmp_path: Path) -> None:
    noise = io.BytesIO()
    Image.effect_noise((1200, 600), 80).save(noise, "png")
    shown = [item("tiny", True), item("large", True, ImageRef(data=noise.getvalue()))]
    html = write(tmp_path, shown=shown)
    (tiny, tiny_crisp), (large, large_crisp) = embedded(html)
    assert tiny.size == (48, 32) and tiny.convert("RGB").getpixel((10, 10)) == (255, 0, 0) and tiny_crisp
    assert large.size == (256, 128) and large.format == "JPEG" and not large_crisp
    assert len(html) < 100_000


def test_a_picture_that_cannot_be_read_leaves_its_reason(tmp_path: Path) -> None:
    html = write(tmp_path, shown=[item("gone", False, ImageRef(path=str(tmp_path / "gone.png")))])
    assert "there is no image" in Page(html).text and not Page(html).all("img")


def test_an_item_without_a_picture_is_shown(tmp_path: Path) -> None:
    sample = Sample("t", (Turn("user", ("two plus two?",)), Turn("assistant", ("four",))))
    assert "two plus two?" in write(tmp_path, shown=[(sample, Prediction("t", "", "four", 0.0))])


def test_samples_left_out_are_listed(tmp_path: Path) -> None:
    skipped = [{"id": f"s{i}", "reason": "there is no image"} for i in range(300)]
    result = RESULT | {
        "unusable": [{"id": "u", "reason": "too long"}],
        "unusable_samples": 1,
        "skipped": skipped,
        "skipped_samples": 300,
    }
    text = Page(write(tmp_path, result)).text
    assert "301 samples were not trained on; the first 200 are listed" in text and "too long" in text
    assert "were not trained on" not in Page(write(tmp_path)).text


def test_a_diverged_run_says_so(tmp_path: Path) -> None:
    metrics = [*METRICS, {"step": 310, "time_s": 1.0, "loss": float("nan"), "grad_norm": float("inf"), "lr": 1e-3}]
    html = write(tmp_path, RESULT | {"eval_loss": float("nan")}, metrics)
    assert html.count("1 values are not finite") == 2 and "not a number" in html


def test_several_encoders_and_models_are_named(tmp_path: Path) -> None:
    encoders = {"a": {"name": "timm", "model": "vit_tiny"}, "b": {"name": "tiny"}}
    assert "timm:vit_tiny + tiny × perceiver × xattn × tiny" in write(tmp_path, config=CONFIG | {"encoders": encoders})


CAPTIONS = {
    "items": 9, "accuracy": None, "interval": None, "cider": 1.0567, "cider_interval": [0.9, 1.2], "bleu4": 0.3123,
    "by_tag": {}, "unreadable": 0, "blind": {"items": 9, "accuracy": None, "cider": 0.0512, "bleu4": 0.01},
}  # fmt: skip


def test_captions_are_told_by_cider_and_bleu(tmp_path: Path) -> None:
    totals = {"accuracy": None, "cider": 1.0567, "cider_blind": 0.0512, "bleu4": 0.3123, "bleu4_blind": 0.01}
    sample, _ = item("a", True)
    answer = Prediction("a", "a dog", "yes", 1.0567, metric="caption", answers=("yes", "a brown dog"))
    page = Page(write(tmp_path, RESULT | totals | {"evaluations": {"coco": CAPTIONS}}, shown=[(sample, answer)]))
    text = " ".join(page.text.split())
    assert "coco CIDEr-D 105.7 BLEU-4 31.2 90.0 – 120.0 5.1 9" in text
    assert "cider105.7CIDEr-D × 100, over 9 items" in text and "bleu4_blind1.0" in text
    assert "they are no accuracies" in text and "105.7 %" not in text and "✗" not in text and "✓" not in text
    assert "CIDEr-D 105.7 · a" in text and "a brown dog" in text


def test_beside_accuracies_captions_have_tiles_of_their_own(tmp_path: Path) -> None:
    both = {"evaluations": {"vqa": RESULT["evaluations"]["easy_vqa"], "coco": CAPTIONS}, "cider": 1.0567}
    text = " ".join(Page(write(tmp_path, RESULT | both)).text.split())
    assert "accuracy81.2 %over 16 items" in text and "cider105.7CIDEr-D × 100, over 9 items" in text
