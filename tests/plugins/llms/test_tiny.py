"""The language model that learns its vocabulary from the run's texts."""

import json

import pytest
import torch

from beni_plugins.llms.tiny import TinyLlama, TinyLlamaConfig

TEXTS = ["how many cats are there?", "three cats", "is there a red circle?", "yes", "no"] * 3
ODD = [
    "plain",
    " spaces  and\ttabs\n\nlines\r\n",
    "Zażółć gęślą jaźń — ½ ✓",
    "日本語のテキスト，中文，한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301",
    "\u200b\ufeff\u202eבעברית",
    "a<b>&amp;</b> {{x}} <|im_start|>",
    "\x00\x07\x1f",
]


def test_vocabularies_are_repeatable() -> None:
    one, other = (TinyLlama(TinyLlamaConfig()).tokenizer(iter(TEXTS)) for _ in range(2))
    assert one.get_vocab() == other.get_vocab()
    assert json.loads(one.backend_tokenizer.to_str()) == json.loads(other.backend_tokenizer.to_str())


@pytest.mark.parametrize("texts", [TEXTS, []], ids=["learned", "from nothing"])
@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_every_text_survives(text: str, texts: list[str]) -> None:
    """All bytes are in the vocabulary: nothing is unknown, whatever the training texts were."""
    tokenizer = TinyLlama(TinyLlamaConfig()).tokenizer(texts)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_common_words_are_one_token() -> None:
    tokenizer = TinyLlama(TinyLlamaConfig()).tokenizer(TEXTS)
    assert len(tokenizer.tokenize(" cats")) == 1
    assert len(tokenizer.tokenize(" zebra")) == len(" zebra")


def test_texts_begin_with_bos() -> None:
    tokenizer = TinyLlama(TinyLlamaConfig()).tokenizer(TEXTS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("no")["input_ids"]) == ["<bos>", "no"]


def test_vocabularies_are_as_large_as_wanted() -> None:
    assert len(TinyLlama(TinyLlamaConfig(vocabulary=270)).tokenizer(TEXTS)) <= 270


def test_templates_write_each_role_with_one_token_and_end_answers() -> None:
    tokenizer = TinyLlama(TinyLlamaConfig()).tokenizer(TEXTS)
    chat = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "three"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str) and isinstance(prompt, str)
    assert text.startswith(prompt) and text.endswith("three" + tokenizer.eos_token)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "how many?three"


def test_models_are_tied_and_follow_the_seed() -> None:
    provider = TinyLlama(TinyLlamaConfig(width=32, layers=1, heads=2, ff_width=48))
    tokenizer = provider.tokenizer(TEXTS)
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, provenance = provider.build(tokenizer)
        assert provenance is None and not provider.pretrained
        models.append(model)
    tables = [model.get_input_embeddings().weight for model in models]
    assert tables[0] is models[0].get_output_embeddings().weight
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert len(tables[0]) == len(tokenizer)
