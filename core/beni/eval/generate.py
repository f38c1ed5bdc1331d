"""Answers in words: one call of `generate` for judging, for one question on the terminal, and for a conversation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from beni.data.batch import Pictures
from beni.data.document import Composer, Document
from beni.data.padded import pad
from beni.errors import ConfigError
from beni.model.modeling import BeniForConditionalGeneration


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 64
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0: always the likeliest token; above: drawn from softmax(logits / temperature)."""
    top_p: float = 1.0
    """Drawn from the likeliest tokens that together have this probability; 1: from all."""
    seed: int = 0
    """Of what is drawn."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens {self.max_new_tokens}: an answer has at least 1 token")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature}: 0 for the likeliest token, or above")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p {self.top_p}: a probability above 0, and 1 at most")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: at least 0")

    def options(self) -> dict[str, Any]:
        """What `generate` of transformers calls it; nothing of a model's own generation settings is left in force."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "temperature": float(self.temperature),  # transformers refuses whole numbers
            "top_p": float(self.top_p),
            "top_k": 0,  # transformers would look at the best 50 alone
        }


def answer_ids(
    model: BeniForConditionalGeneration,
    composer: Composer,
    documents: Sequence[Document],
    sampling: Sampling,
    pictures: Pictures | None = None,
    synced: bool = False,
    streamer: BaseStreamer | None = None,
    stopping: Iterable[StoppingCriteria] = (),
) -> torch.Tensor:
    """[B, new] the token ids that continue each prompt, padded behind the end of an answer.

    Args:
        documents: prompts; rows of one batch.
        pictures: those of the documents that are loaded already.
        synced: several processes generate together.
        streamer: is handed each token of a single prompt when it is there.
        stopping: ends an answer early.

    Raises:
        ImageError: an image cannot be read.
    """
    stop = sorted(composer.template.stop_ids)
    pad_id = padding_id(composer)
    inputs = to_device(pad(documents, pictures or Pictures(composer), pad_id), model.device)
    if sampling.temperature:
        torch.manual_seed(sampling.seed)
    with torch.no_grad():
        out = model.generate(
            **inputs,
            **sampling.options(),
            eos_token_id=stop,
            pad_token_id=pad_id,
            synced_gpus=synced,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList(stopping),
        )
    return out[:, inputs["input_ids"].shape[1] :]


def answer_texts(
    model: BeniForConditionalGeneration,
    composer: Composer,
    documents: Sequence[Document],
    sampling: Sampling,
    pictures: Pictures | None = None,
    synced: bool = False,
) -> list[str]:
    """The continuation of each prompt, as text; arguments as for `answer_ids`.

    Raises:
        ImageError: an image cannot be read.
    """
    out = answer_ids(model, composer, documents, sampling, pictures, synced)
    return composer.template.tokenizer.batch_decode(out, skip_special_tokens=True)


def padding_id(composer: Composer) -> int:
    """The token that fills rows up: the tokenizer's, or one that ends answers."""
    pad_id = composer.template.tokenizer.pad_token_id
    return pad_id if isinstance(pad_id, int) else min(composer.template.stop_ids)


def to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A padded batch on a device; pixels of several encoders, and features, are dictionaries in it."""

    def move(value: Any) -> Any:
        return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)

    return {name: move(value) for name, value in inputs.items()}
