"""A small Llama trained from scratch, with a byte-level BPE vocabulary learned from the run's own texts."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from beni.config import PartConfig
from beni.interfaces import LanguageModel, Provenance

ROLES = {"system": "<system>", "user": "<user>", "assistant": "<assistant>"}
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<' ~ message.role ~ '>' ~ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
"""A chat template with one token per role: small models should not spend positions on formatting."""


@dataclass(frozen=True, slots=True)
class TinyLlamaConfig(PartConfig):
    width: int = 128
    """Channels."""
    layers: int = 2
    """Decoder layers."""
    heads: int = 4
    """Attention heads."""
    ff_width: int = 256
    """Hidden width of the SwiGLU feed-forward."""
    init_std: float = 0.06
    """Standard deviation of the initial weights."""
    rope_theta: float = 1e6
    """Base of the rotary positions: large, so that content decides more than distance."""
    vocabulary: int = 4096
    """Most entries of the vocabulary; it holds all bytes and the commonest pieces of the training texts."""


class TinyLlama(LanguageModel):
    """From scratch: weights start with standard deviation 1/√width, embeddings are tied."""

    beni_api = 1
    Config = TinyLlamaConfig
    pretrained: ClassVar[bool] = False

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.config.vocabulary,
            min_frequency=2,
            special_tokens=["<pad>", "<bos>", "<eos>", *ROLES.values()],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            extra_special_tokens=list(ROLES.values()),
            chat_template=CHAT,
        )

    def build(self, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, Provenance | None]:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.config.width,
            intermediate_size=self.config.ff_width,
            num_hidden_layers=self.config.layers,
            num_attention_heads=self.config.heads,
            num_key_value_heads=self.config.heads,
            initializer_range=self.config.init_std,
            rope_parameters={"rope_type": "default", "rope_theta": self.config.rope_theta},
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return LlamaForCausalLM(config), None
