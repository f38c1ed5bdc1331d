"""Exported as `idefics3`: the same logits for one crop of a SigLIP behind a pixel shuffle; the rest is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Idefics3ForConditionalGeneration

from beni.cli.main import main
from beni.errors import ExportError
from beni.export import export as exporting
from beni.export.export import export
from beni.export.idefics3 import AROUND, IDEFICS3, WHOLE
from beni.model.build import Built
from beni.types import Size
from tests.export.small import answers, answers_without_beni, check_same, off, trained
from tests.model.small import make
from tests.model.test_new_tokens import llm_without
from tests.model.test_saved import save
from tests.plugins.encoders.test_hf import publish

FUSION: dict[str, Any] = {"name": "inline", "before": [AROUND, WHOLE], "after": [AROUND]}
PARTS: dict[str, Any] = {
    "encoder": {"layers": []},
    "connector": {"name": "concat", "bias": False},
    "fusion": FUSION,
}
CASES: dict[str, dict[str, Any]] = {
    "square2": {},
    "square4": {"connector": {"name": "concat", "order": "square4", "bias": False}},
    "square1": {"connector": {"name": "concat", "order": "square1", "bias": False}},
}


def siglip(folder: Path, **tables: Any) -> Built:
    """A model that the class computes, but for these tables."""
    tables = PARTS | tables
    return trained(folder, tables.pop("family", "siglip_vision_model"), **tables)


@pytest.mark.parametrize("case", CASES)
def test_computes_the_same(case: str, tmp_path: Path) -> None:
    built = siglip(tmp_path, **CASES[case])
    told = export(str(tmp_path / "model"), "idefics3", str(tmp_path / "out"))
    assert told["class"] == "Idefics3ForConditionalGeneration"
    assert told["logits_differ_by"] < 1e-5 and told["pixels_differ_by"] < 0.002
    shapes = [Size(64, 64), Size(97, 31), Size(9, 200), Size(1, 1)]
    check_same(built, tmp_path / "out", IDEFICS3, Idefics3ForConditionalGeneration, shapes)


def test_answers_the_same_without_beni(tmp_path: Path) -> None:
    """Conversations of one padded batch have different numbers of pictures."""
    built = siglip(tmp_path, llm={"name": "hf", "model": llm_without(tmp_path / "llm", "pad")})
    main(["export", str(tmp_path / "model"), "--to", "idefics3", "--out", str(tmp_path / "out")])
    alone, together = answers_without_beni(tmp_path / "out", tmp_path)
    assert alone == together == answers(built)
    assert len({tuple(row) for row in alone}) > 1, "a poor example: questions are answered alike"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "view": ({"view": {"name": "split"}}, "5 crops.*--view single"),
    "tokens": ({"fusion": {"name": "inline"}}, "--fusion.before '<fake_token_around_image>' '<global-img>'"),
    "newline": ({"fusion": FUSION | {"newline": "block"}}, "--fusion.newline none"),
    "bias": ({"connector": {"name": "concat"}}, "bias True.*--connector.no-bias"),
    "strips": ({"connector": {"name": "concat", "order": "raster4", "bias": False}}, "'raster4'"),
    "connector": ({"connector": {"name": "mlp"}}, "connector Mlp"),
    "between": ({"encoder": {}}, "last hidden state.*--encoder.layers"),
    "clip": ({"family": "vit"}, "a vit model.*SigLIP"),
    "several": (
        {"encoders": {"main": {"name": "tiny", "size": 16}, "other": {"name": "tiny", "size": 16}}},
        "2 encoders",
    ),
    "pad": ({"view": {"name": "single", "fit": "pad"}}, "Idefics3ImageProcessor cannot.*--view single"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_equal_is_refused(case: str, tmp_path: Path) -> None:
    tables, said = REFUSED[case]
    siglip(tmp_path, **tables)
    with pytest.raises(ExportError, match=said):
        export(str(tmp_path / "model"), "idefics3", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def around(folder: Path, images: dict[str, Any], **config: Any) -> None:
    """A saved model around a SigLIP with other options, and with other preparing of pictures."""
    publish(folder / "encoder", "siglip_vision_model")
    for name, changed in (("config", config), ("preprocessor_config", images)):
        file = folder / "encoder" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    encoder = {"name": "hf", "model": str(folder / "encoder"), "layers": [], "weights": "none"}
    tables = {"encoders": {"main": encoder}, "connector": PARTS["connector"] | {"order": "square1"}, "fusion": FUSION}
    save(make("inline", **tables), folder / "model")


@pytest.mark.parametrize(("side", "moved"), [(14, 0), (16, 0), (19, 37), (24, 0), (27, 0)])
def test_positions_that_the_class_rounds_away_are_found(side: int, moved: int, tmp_path: Path) -> None:
    """The 13th of 19 rows, and the 13th of 19 columns, get the position of another."""
    around(tmp_path, {"size": {"height": 2 * side, "width": 2 * side}}, image_size=2 * side, patch_size=2)
    if moved:
        with pytest.raises(ExportError, match=rf"{moved} of the 19x19 patches.*by rounding"):
            export(str(tmp_path / "model"), "idefics3", str(tmp_path / "out"))
    else:
        assert export(str(tmp_path / "model"), "idefics3", str(tmp_path / "out"))["logits_differ_by"] < 1e-5


def test_pictures_that_become_zeros_are_refused(tmp_path: Path) -> None:
    """The class takes them for what fills batches: a black one, where black is the mean."""
    around(tmp_path, {"image_mean": [0.0, 0.2, 1.0]})
    with pytest.raises(ExportError, match="takes for no picture"):
        export(str(tmp_path / "model"), "idefics3", str(tmp_path / "out"))


def test_a_weight_that_is_off_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporting.TARGETS, "idefics3", off(IDEFICS3, "model.vision_model.post_layernorm.bias"))
    siglip(tmp_path)
    with pytest.raises(ExportError, match="computes something else"):
        export(str(tmp_path / "model"), "idefics3", str(tmp_path / "out"))


def test_the_tokens_around_a_picture_are_rows_of_the_table(tmp_path: Path) -> None:
    built = siglip(tmp_path)
    export(str(tmp_path / "model"), "idefics3", str(tmp_path / "out"))
    native = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    weight, table = built.model.new_tokens.weight, native.get_input_embeddings().weight
    assert weight is not None and len(built.model.new_tokens.ids) == 2
    for token in (AROUND, WHOLE):
        id = built.tokenizer.convert_tokens_to_ids(token)
        assert torch.equal(table[id], weight[built.model.new_tokens.ids.index(id)])
    never = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert len(table) > never in native.generation_config.suppress_tokens
