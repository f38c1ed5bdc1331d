"""Saved models are ordinary Hugging Face models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

import beni_plugins
from beni.data.batch import pack
from beni.data.images import load_image
from beni.errors import ConfigError
from beni.eval.saved import load_saved
from beni.model.build import Built
from beni.model.config import BeniConfig
from beni.model.processing import BeniProcessor
from tests.model.small import CONVERSATIONS, A, B, inputs, make
from tests.model.test_generation import generate


@pytest.fixture(scope="module", params=["inline", "xattn"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Path]:
    """A model and the folder it was saved to."""
    built = make(request.param)
    built.model.eval()
    return built, save(built, tmp_path_factory.mktemp(request.param))


def save(built: Built, folder: Path) -> Path:
    built.model.save_pretrained(folder)
    BeniProcessor(built.tokenizer, built.composer).save_pretrained(folder)
    return folder


def test_reloads_with_equal_logits_and_answers(saved: tuple[Built, Path]) -> None:
    built, folder = saved
    batch = inputs(built, CONVERSATIONS)
    for auto in (AutoModel, AutoModelForImageTextToText):
        model = auto.from_pretrained(folder)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, built.model(**batch).logits)
        assert not model.training
        assert model.generation_config.eos_token_id == built.model.config.stop_token_ids
    again = Built(model, built.tokenizer, built.composer, {})
    assert generate(again, batch).tolist() == generate(built, batch).tolist()
    row = pack([[built.composer.compose(sample)] for sample in CONVERSATIONS], built.composer)
    assert torch.equal(model(packed=row).loss, built.model(packed=row).loss), "the reloaded model can be trained on"


def test_import_beni_is_enough(saved: tuple[Built, Path]) -> None:
    """In a fresh process, `import beni` registers everything."""
    built, folder = saved
    code = (
        "import sys, beni; from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])\n"
        "batch = AutoProcessor.from_pretrained(sys.argv[1])(text=['hello there'])\n"
        "print(type(model).__name__, model.generate(**batch, max_new_tokens=4, do_sample=False).tolist()[0])"
    )
    roots = os.pathsep.join(str(Path(package.__path__[0]).parent) for package in (beni_plugins,))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), roots])}
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env=environment
    ).stdout
    batch = BeniProcessor(built.tokenizer, built.composer)(text=["hello there"])
    expected = built.model.generate(**batch, max_new_tokens=4, do_sample=False).tolist()[0]
    assert out.strip() == f"BeniForConditionalGeneration {expected}"


def test_the_processor_tokenizes_as_training_did(saved: tuple[Built, Path]) -> None:
    built, folder = saved
    processor = AutoProcessor.from_pretrained(folder)
    sample = CONVERSATIONS[4]
    content: list[dict[str, Any]] = []
    for part in sample.turns[0].content:
        if isinstance(part, int):
            content.append({"type": "image", "image": sample.images[part].data})
        else:
            content.append({"type": "text", "text": part})
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    wanted = inputs(built, (sample,))
    assert set(batch) == set(wanted) == set(processor.model_input_names)
    for name, value in wanted.items():
        assert torch.equal(batch[name], value), name


@pytest.mark.parametrize("fusion", ["inline-dragonfly", "xattn-dragonfly"])
def test_a_connector_inside_another_is_saved(fusion: str, tmp_path: Path) -> None:
    built = make(fusion)
    model = AutoModelForImageTextToText.from_pretrained(save(built, tmp_path))
    batch = AutoProcessor.from_pretrained(tmp_path)(images=[[load_image(A), load_image(B)]], text=["<image><image>so?"])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, built.model.eval()(**batch).logits)
    assert BeniConfig.from_pretrained(tmp_path).part("connector").config == built.composer.connector
    assert json.loads((tmp_path / "config.json").read_text())["connector"]["inner"]["origin"]["distribution"] == "beni"


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_one_tensor(tied: bool, tmp_path: Path) -> None:
    built = make("inline")
    if not tied:
        llm = built.model.llm
        llm.config.tie_word_embeddings = built.model.config.tie_word_embeddings = False
        llm.lm_head.weight = torch.nn.Parameter(llm.lm_head.weight.detach() * 1.5)
    folder = save(built, tmp_path)
    with safe_open(folder / "model.safetensors", "pt") as file:
        missing = built.model.state_dict().keys() - file.keys()
    assert missing == ({"llm.lm_head.weight"} if tied else set())
    model = AutoModelForImageTextToText.from_pretrained(folder)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == table.data_ptr()) == tied
    batch = inputs(built, CONVERSATIONS[:1])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, built.model.eval()(**batch).logits)


def test_loading_reports_nothing_missing(saved: tuple[Built, Path]) -> None:
    _, info = AutoModelForImageTextToText.from_pretrained(saved[1], output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))


def test_weights_that_a_part_lacks_are_told_and_not_drawn(saved: tuple[Built, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved[1], tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in sorted(state) if name.startswith("connector."))
    save_file({name: tensor for name, tensor in state.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"--model .*weights lack 1 tensors, the first is '{lost}'"):
        load_saved(str(folder), torch.device("cpu"))


def test_loaded_in_half_precision(saved: tuple[Built, Path]) -> None:
    built, folder = saved
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    batch = inputs(built, CONVERSATIONS)
    with torch.no_grad():
        half, full = model(**batch).logits.float(), built.model(**batch).logits
    assert (half - full).norm() < 0.03 * full.norm()


def test_the_pipeline_answers_chats(saved: tuple[Built, Path]) -> None:
    built, folder = saved
    answer = pipeline("image-text-to-text", model=str(folder))
    picture: Image.Image = load_image(A)
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what is it?"}]}]
    [given] = answer(text=chat, max_new_tokens=6, return_full_text=False, generate_kwargs={"do_sample": False})
    batch = inputs(built, CONVERSATIONS[:1])
    expected = built.model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert given["generated_text"] == built.tokenizer.decode(expected[0], skip_special_tokens=True)
    [plain] = answer(images=[picture], text="<image>what is it?", max_new_tokens=2)
    assert isinstance(plain["generated_text"], str)


def test_lora_on_top(saved: tuple[Built, Path], tmp_path: Path) -> None:
    """One step trains the adapter alone, which saves and loads by itself; generation works through it."""
    built, folder = saved
    model = AutoModelForImageTextToText.from_pretrained(folder)
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r"llm\..*\.(q_proj|v_proj)"))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=10.0)
    batch = inputs(built, CONVERSATIONS, prompt_only=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(**batch, labels=labels).loss.backward()
        optimizer.step()
    row = pack([[built.composer.compose(sample)] for sample in CONVERSATIONS], built.composer)
    adapted(packed=row).loss.backward()
    after = {
        name.replace(".base_layer", ""): value for name, value in model.state_dict().items() if "lora_" not in name
    }
    assert all(torch.equal(after[name], value) for name, value in frozen.items())

    adapted.eval()
    prompts = inputs(built, CONVERSATIONS)
    with torch.no_grad():
        trained = adapted(**prompts).logits
        assert (trained - built.model(**prompts).logits).abs().max() > 1e-4
    assert adapted.generate(**prompts, max_new_tokens=3).shape[0] == len(CONVERSATIONS)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(folder), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**prompts).logits, trained)


def test_the_configuration_survives(saved: tuple[Built, Path]) -> None:
    built, folder = saved
    config = BeniConfig.from_pretrained(folder)
    assert config.encoder_specs() == built.composer.encoders
    assert config.part("connector").config == built.composer.connector
    assert config.part("fusion").config == built.composer.fusion
    assert config.template == built.composer.template.jinja


def test_no_path_of_this_machine_is_saved(tmp_path: Path) -> None:
    """A model made from folders does not say where they were."""
    source = make("inline")
    llm = tmp_path / "home" / "llm"
    source.model.llm.save_pretrained(llm)
    source.tokenizer.save_pretrained(llm)
    built = make("inline", llm={"name": "hf", "model": str(llm)}, data={"template": "chatml"})
    folder = save(built, tmp_path / "model")
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja"):
            assert str(tmp_path) not in file.read_text(encoding="utf-8"), file.name
    assert json.loads((folder / "config.json").read_text())["text_config"]["model_type"] == "llama"


def test_loaded_weights_are_the_published_ones(tmp_path: Path) -> None:
    """Building around a loaded LLM does not initialise it again."""
    source = make("inline")
    torch.nn.init.constant_(source.model.llm.model.layers[0].mlp.up_proj.weight, 0.125)
    source.model.llm.save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    built = make("inline", llm={"name": "hf", "model": str(tmp_path)})
    assert built.loaded.keys() == {"llm"}
    for (name, loaded), published in zip(
        built.model.llm.named_parameters(), source.model.llm.parameters(), strict=True
    ):
        assert torch.equal(loaded, published), name


def test_builds_are_repeatable() -> None:
    one, other = make("xattn"), make("xattn")
    for (name, first), second in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    third = make("xattn", run={"seed": 1})
    assert not torch.equal(third.model.llm.lm_head.weight, one.model.llm.lm_head.weight)


def test_the_same_images_in_any_order(saved: tuple[Built, Path]) -> None:
    """Which picture a row shows is told by index, whatever the order of the pictures."""
    built, folder = saved
    processor = AutoProcessor.from_pretrained(folder)
    pictures = [load_image(A), load_image(B)]
    one = processor(images=[[pictures[0]], [pictures[1]]], text=["<image>what?", "<image>how?"])
    flat = processor(images=pictures, text=["<image>what?", "<image>how?"])
    swapped = processor(images=[[pictures[1]], [pictures[0]]], text=["<image>how?", "<image>what?"])
    with torch.no_grad():
        logits = built.model(**one).logits
        assert torch.equal(built.model(**flat).logits, logits)
        torch.testing.assert_close(built.model(**swapped).logits.flip(0), logits, rtol=1e-5, atol=1e-5)
