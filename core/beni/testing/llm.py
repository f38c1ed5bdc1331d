"""Checks of language models: the tokenizer loses nothing, and the model can be packed, gated and saved."""

from typing import ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from beni.interfaces import LanguageModel, load
from beni.model.llm import decoder_layers, use_packed_attention
from beni.testing.model import ModelConformance
from beni.testing.small import TEXTS
from beni.testing.suite import require

SPELLED = ("what is it?", "three cats", "yes", "12.5 %", "Two lines.\nThe second.", "a red circle, left of it")


class LanguageModelConformance(ModelConformance):
    """Subclass it and name your language model: `part = "mine"`."""

    kind: ClassVar[str] = "llm"

    def _made(self) -> tuple[LanguageModel, PreTrainedTokenizerBase, PreTrainedModel]:
        provider: LanguageModel = load("llm", self.chosen())(self.chosen().config)
        tokenizer = provider.tokenizer(TEXTS)
        torch.manual_seed(0)
        return provider, tokenizer, provider.build(tokenizer)[0]

    def test_texts_survive_the_tokenizer(self) -> None:
        _, tokenizer, _ = self._made()
        for text in SPELLED:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            again = tokenizer.decode(ids)
            require(again == text, f"the tokenizer reads {text!r} and writes {again!r}: answers could not be compared")

    def test_the_vocabulary_fits_the_embeddings(self) -> None:
        _, tokenizer, model = self._made()
        rows = len(model.get_input_embeddings().weight)
        require(len(tokenizer) <= rows, f"the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings")

    def test_the_model_is_whole_and_in_fp32(self) -> None:
        provider, _, model = self._made()
        kinds = {parameter.dtype for parameter in model.parameters()}
        require(kinds == {torch.float32}, f"`build` must return weights in fp32, these are {kinds}")
        require(
            isinstance(getattr(provider, "pretrained", None), bool),
            "say whether `build` returns trained weights: pretrained = True or False",
        )
        use_packed_attention(model)
        decoder_layers(model)
