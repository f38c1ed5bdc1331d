"""A Hugging Face language model from a folder."""

from pathlib import Path

import pytest
import torch

from beni.errors import ConfigError
from beni_plugins.llms.hf import HfLanguageModel, HfLanguageModelConfig
from tests.model.small import CONVERSATIONS, inputs, make


def test_from_a_folder(tmp_path: Path) -> None:
    source = make("inline")
    source.model.llm.to(torch.bfloat16).save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    provider = HfLanguageModel(HfLanguageModelConfig(model=str(tmp_path)))
    tokenizer = provider.tokenizer(())
    assert tokenizer.get_vocab() == source.tokenizer.get_vocab()
    model, provenance = provider.build(tokenizer)
    assert provider.pretrained and provenance is not None and provenance.origin == str(tmp_path)
    assert model.dtype == torch.float32
    for (name, loaded), published in zip(model.named_parameters(), source.model.llm.parameters(), strict=True):
        assert torch.equal(loaded, published.float()), name


def test_published_stop_tokens_end_answers(tmp_path: Path) -> None:
    """An LLM may be published with more end tokens than its tokenizer knows (Llama 3's <|eot_id|>)."""
    source = make("inline")
    source.model.llm.generation_config.eos_token_id = [source.tokenizer.eos_token_id, 40]
    source.model.llm.save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    built = make("inline", llm={"name": "hf", "model": str(tmp_path)})
    assert built.model.config.stop_token_ids == sorted({source.tokenizer.eos_token_id, 40})
    head = built.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, torch.tensor(40), 99.0))
    batch = inputs(built, CONVERSATIONS[:1])
    assert built.model.eval().generate(**batch, max_new_tokens=5).shape[1] == batch["input_ids"].shape[1] + 1


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make("inline").tokenizer.save_pretrained(tmp_path / "tokenizer")
    for model in ("no-such-owner/no-such-model", str(tmp_path / "empty")):
        provider = HfLanguageModel(HfLanguageModelConfig(model=model))
        with pytest.raises(
            ConfigError, match=r"language model '.*' cannot be loaded.*config.json, weights and tokenizer"
        ) as error:
            provider.tokenizer(())
        assert "\n" not in str(error.value)
    provider = HfLanguageModel(HfLanguageModelConfig(model=str(tmp_path / "tokenizer")))
    tokenizer = provider.tokenizer(())
    with pytest.raises(ConfigError, match="cannot be loaded"):
        provider.build(tokenizer)
