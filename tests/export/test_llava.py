"""Exported as `llava`: the same logits and answers, without beni; what the class does not compute is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from beni.cli.main import main
from beni.errors import ConfigError, ExportError, NotWritten
from beni.eval.saved import load_saved
from beni.export import export as exporting
from beni.export import llavas
from beni.export.chat import with_images
from beni.export.export import export
from beni.export.llava import LLAVA
from beni.model.build import END, Built
from beni.types import Size
from tests.export.small import QUESTIONS, answers, answers_without_beni, check_same, off, trained
from tests.model.families import FAMILIES, llm
from tests.model.small import FUSIONS, make
from tests.model.test_new_tokens import CHAT, llm_without
from tests.model.test_saved import save
from tests.plugins.encoders.test_hf import publish


def around(folder: Path, **config: Any) -> Built:
    """A model around an encoder whose published configuration says something else."""
    publish(folder / "encoder", "vit")
    file = folder / "encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return make("inline", encoders={"main": {"name": "hf", "model": str(folder / "encoder")}})


CASES: dict[str, Any] = {
    "clip": {},
    "siglip": {"family": "siglip_vision_model"},
    "vit": {"family": "vit"},
    "dinov2": {"family": "dinov2"},
    "last": {"family": "siglip_vision_model", "encoder": {"layers": [-1]}},
    "several": {"encoder": {"layers": [1, -2]}},
    "padded": {"view": {"name": "single", "fit": "pad"}},
}


@pytest.mark.parametrize("case", CASES)
def test_computes_the_same(case: str, tmp_path: Path) -> None:
    tables = dict(CASES[case])
    built = trained(tmp_path, tables.pop("family", "clip_vision_model"), **tables)
    told = export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))
    assert told["class"] == "LlavaForConditionalGeneration"
    assert told["logits_differ_by"] < 1e-5
    assert told["pixels_differ_by"] < (0.05 if case == "padded" else 0.002)
    assert "as `LlavaForConditionalGeneration`" in (tmp_path / "out" / "README.md").read_text()
    shapes = [Size(64, 64), Size(97, 31), Size(9, 200), Size(1, 1)]
    check_same(built, tmp_path / "out", LLAVA, LlavaForConditionalGeneration, shapes)


def test_answers_the_same_without_beni(tmp_path: Path) -> None:
    """In a process that cannot import beni: chats with pictures in files, one by one and in a padded batch.

    The language model's tokenizer cannot pad, and would on the right; the exported one is ready for batches.
    """
    built = trained(tmp_path, llm={"name": "hf", "model": llm_without(tmp_path / "llm", "pad")})
    main(["export", str(tmp_path / "model"), "--to", "llava", "--out", str(tmp_path / "out")])
    alone, together = answers_without_beni(tmp_path / "out", tmp_path)
    assert alone == together == answers(built)
    assert len({tuple(row) for row in alone}) == len(QUESTIONS), "a poor example: questions are answered alike"


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_become_rows_of_the_tables(tied: bool, tmp_path: Path) -> None:
    """A language model whose end of answers is beni's: the native class knows its embedding and predicts it."""
    folder = llm_without(tmp_path / "llm", "eos")
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    built = trained(tmp_path, llm={"name": "hf", "model": folder})
    assert built.model.config.tie_word_embeddings is tied and built.model.new_tokens.predicted == 1
    export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))
    native = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert any("lm_head" in name for name in file.keys()) is not tied, "tied tables are written once"  # noqa: SIM118
    end = built.tokenizer.convert_tokens_to_ids(END)
    weight = built.model.new_tokens.weight
    assert weight is not None
    assert torch.equal(native.get_input_embeddings().weight[end], weight[0])
    assert torch.equal(native.get_output_embeddings().weight[end], weight[0])
    assert native.generation_config.eos_token_id == [end]
    never = native.generation_config.suppress_tokens
    assert end not in never and built.composer.image_token in never and native.config.image_token_index in never


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": ({"encoders": FUSIONS["inline"].get("encoders", {"main": {"name": "tiny", "size": 16}})}, "TinyEncoder"),
    "projector": ({"connector": {"name": "mlp", "kind": "linear"}}, "'linear'.*mlp2x_gelu"),
    "connector": ({"connector": {"name": "concat"}}, "connector Concat"),
    "fusion": ({"parts": "xattn"}, "between the layers"),
    "newline": ({"fusion": {"name": "inline", "newline": "row"}}, "--fusion.newline none"),
    "around": ({"fusion": {"name": "inline", "after": ["</img>"]}}, "nor --fusion.after"),
    "view": ({"view": {"name": "split"}}, "5 crops.*--view single"),
    "last": ({"encoder": {"layers": []}}, "--encoder.layers -2"),
    "size": ({"encoder": {"size": 48}}, "48 pixels.*--encoder.size 0"),
    "registers": ({"family": "dinov2_with_registers"}, "5 tokens in front"),
    "merging": ({"family": "swin"}, "merges its patches"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_equal_is_refused(case: str, tmp_path: Path) -> None:
    tables, said = REFUSED[case]
    tables = dict(tables)
    trained(tmp_path, tables.pop("family", "clip_vision_model"), **tables)
    with pytest.raises(ExportError, match=said):
        export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def of_family(folder: Path, family: str, **options: Any) -> Built:
    """A model around a language model of that family."""
    plain = make("inline")
    llm(family, FAMILIES[family] | options, len(plain.tokenizer)).save_pretrained(folder / "llm")
    plain.tokenizer.save_pretrained(folder / "llm")
    return trained(folder, llm={"name": "hf", "model": str(folder / "llm")})


FAMILIES_REFUSED = {
    "gemma2": "final_logit_softcapping is 30.0",
    "granite": "logits_scaling is 2.0",
    "cohere": "logit_scale is 0.0625",
    "gptj": "output layer of GPTJForCausalLM is not one matrix",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_language_model_is_the_same_or_refused(family: str, tmp_path: Path) -> None:
    """Also where it ties tables that the class does not know by name, as GPT-2 and OPT do."""
    of_family(tmp_path, family)
    if family in FAMILIES_REFUSED:
        with pytest.raises(ExportError, match=FAMILIES_REFUSED[family]):
            export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))
        assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == [], "nothing is left behind"
    else:
        assert export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))["logits_differ_by"] < 1e-5


def test_a_weight_that_is_off_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporting.TARGETS, "llava", off(LLAVA, "model.multi_modal_projector.linear_1.bias"))
    trained(tmp_path)
    with pytest.raises(ExportError, match="computes something else"):
        export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))


def test_weights_that_are_not_numbers_are_found(tmp_path: Path) -> None:
    built = trained(tmp_path)
    built.model.connector.layers[0].bias.data[0] = float("nan")  # type: ignore[index]
    save(built, tmp_path / "model")
    with pytest.raises(ExportError, match="not numbers"):
        export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))


def test_rows_of_tokens_behind_answers_are_asked_as_well(tmp_path: Path) -> None:
    """Gemma scales its embeddings, and beni's new tokens stand beside them."""
    folder = tmp_path / "llm"
    llm_without(folder, "eos")
    llm("gemma3_text", FAMILIES["gemma3_text"], 320).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    built = trained(tmp_path, llm={"name": "hf", "model": str(folder)})
    assert built.model.new_tokens.predicted == 1
    with pytest.raises(ExportError, match="logits differ by"):
        export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))


def test_another_answer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        return torch.cat([named["input_ids"], torch.zeros(1, 4, dtype=torch.long)], dim=1)

    trained(tmp_path)
    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", forgetful)
    with pytest.raises(ExportError, match=r"goes on with the tokens \[0, 0, 0, 0\] where the model goes on with"):
        export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whatever the tower's configuration says."""
    built = around(tmp_path, dtype="float16")
    built.model.to(dtype)
    save(built, tmp_path / "model")
    assert export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))["logits_differ_by"] < 1e-5
    native = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in native.parameters()} == {dtype}


def test_patches_with_two_sides(tmp_path: Path) -> None:
    """Equal ones are a side; others no native class of Llava's kind can count."""
    save(around(tmp_path, patch_size=[8, 8]), tmp_path / "model")
    assert export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))["logits_differ_by"] < 1e-5


def test_a_template_that_begins_with_a_blank_line_keeps_it(tmp_path: Path) -> None:
    folder = Path(llm_without(tmp_path / "llm"))
    (folder / "chat_template.jinja").write_text("\n\n" + CHAT)
    built = trained(tmp_path, llm={"name": "hf", "model": str(folder)})
    assert built.composer.template.jinja.startswith("\n\n")
    export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))


def test_a_tokenizer_with_an_image_token_of_its_own(tmp_path: Path) -> None:
    """Of a language model that was taken out of one with images: `<image>` is what pictures become all the same."""
    folder = Path(llm_without(tmp_path / "llm"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"image_token": "<bos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"extra_special_tokens": own}))
    built = trained(tmp_path, llm={"name": "hf", "model": str(folder)})
    assert built.tokenizer.image_token == "<bos>"
    export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_token == "<image>"


def test_generation_settings_are_kept(tmp_path: Path) -> None:
    built = trained(tmp_path)
    built.model.generation_config.repetition_penalty = 1.5
    save(built, tmp_path / "model")
    export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))
    native = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert native.generation_config.repetition_penalty == 1.5


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    trained(tmp_path)
    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(NotWritten, match=r"cannot be written to .*No space left"):
        export(str(tmp_path / "model"), "llava", str(tmp_path / "new" / "folder" / "out"))
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_adds_to_texts_adds_no_more(tmp_path: Path) -> None:
    """Its BOS comes from the template or not at all, as in training, also where somebody writes the prompt."""
    built = trained(tmp_path, llm={"name": "hf", "model": llm_without(tmp_path / "llm", "pad")})
    assert built.tokenizer("hello")["input_ids"] != built.tokenizer("hello", add_special_tokens=False)["input_ids"]
    export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert tokenizer("hello")["input_ids"] == built.tokenizer("hello", add_special_tokens=False)["input_ids"]


def test_other_tokens_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llavas, "with_images", lambda jinja: with_images(jinja) + "{{ '!' }}")
    trained(tmp_path)
    with pytest.raises(ExportError, match=r"as other tokens.*\['!'\] instead of \[\]"):
        export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))


def test_mistakes_are_told(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(ConfigError, match="choose one of llava"):
        export(str(tmp_path / "model"), "lava", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="something already"):
        export(str(tmp_path / "model"), "llava", str(tmp_path / "encoder"))
    with pytest.raises(ConfigError, match="no saved model"):
        export(str(tmp_path / "nothing"), "llava", str(tmp_path / "out"))
    export(str(tmp_path / "model"), "llava", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"export .*out holds a model of the type 'llava'"):
        export(str(tmp_path / "out"), "llava", str(tmp_path / "again"))
    with pytest.raises(ConfigError, match=r"--model .*out holds a model of the type 'llava'"):
        load_saved(str(tmp_path / "out"), torch.device("cpu"))
