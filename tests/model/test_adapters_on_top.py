"""PEFT on a loaded model, whatever its fusion: a step, the adapter saved and loaded, merged, and saved as a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from beni.model.build import Built
from tests.model.small import CONVERSATIONS, inputs
from tests.model.test_generation import NEW, generate

LANGUAGE = r"llm\..*\.(q_proj|v_proj)"


def logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


LANGUAGE_MODEL = {"target_modules": LANGUAGE, "task_type": "CAUSAL_LM"}
AND_PARTS = {"target_modules": LANGUAGE, "modules_to_save": ["connector", "fusion"]}
EVERYWHERE = {"target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("fusion", "options"),
    [
        ("inline", LANGUAGE_MODEL),
        ("inline-dragonfly", AND_PARTS),
        ("xattn", AND_PARTS),
        ("mllama", LANGUAGE_MODEL),
        ("sva", AND_PARTS),
        ("deepstack", LANGUAGE_MODEL),
        ("deepstack", EVERYWHERE),
    ],
)
def test_an_adapter_trains_saves_loads_and_merges(
    built_by: Any, fusion: str, options: dict[str, Any], tmp_path: Path
) -> None:
    built: Built = built_by(fusion)
    built.model.save_pretrained(tmp_path / "model")
    whole, prompts = inputs(built, CONVERSATIONS, prompt_only=False), inputs(built, CONVERSATIONS)
    labels = whole["input_ids"].masked_fill(whole["attention_mask"] == 0, -100)

    def fresh() -> Any:
        return AutoModelForImageTextToText.from_pretrained(tmp_path / "model")

    adapted = get_peft_model(fresh(), LoraConfig(r=2, **options))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # in the first one the adapters' second halves are zero
        optimizer.zero_grad()
        adapted(**whole, labels=labels).loss.backward()
        optimizer.step()
    unused = [name for name, value in adapted.named_parameters() if value.requires_grad and value.grad is None]
    assert not unused, "what is trained is computed with"
    trained = logits(adapted, prompts)
    assert (trained - logits(built.model, prompts)).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path / "adapter")

    loaded = PeftModel.from_pretrained(fresh(), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded, prompts), trained)
    many = {"do_sample": False, "num_beams": 2, "min_new_tokens": NEW, "max_new_tokens": NEW}
    answers = loaded.generate(**prompts, **many)[:, prompts["input_ids"].shape[1] :].tolist()

    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again, prompts), trained, rtol=1e-3, atol=1e-3)
    assert generate(Built(again, built.tokenizer, built.composer, {}), prompts, num_beams=2).tolist() == answers


def test_an_adapter_that_is_switched_off_computes_what_was_there_before(built_by: Any, tmp_path: Path) -> None:
    """Also in the blocks of a fusion that the language model's layers run."""
    built: Built = built_by("xattn")
    built.model.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=LANGUAGE, modules_to_save=["fusion"]))
    prompts = inputs(built, CONVERSATIONS)
    before = logits(built.model, prompts)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if value.requires_grad and "fusion" in name:
                value.mul_(2.0)
    assert (logits(adapted, prompts) - before).abs().max() > 1e-3
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, prompts), before)
