"""The same model as transformers' own LLaVA, and the same samples as its padded batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from beni.data.batch import Pictures
from beni.data.document import IGNORE, Composer
from beni.model.build import Built
from beni.sample import Sample

RENAMED = {
    "encoders.main.model.": "model.vision_tower.",
    "connector.layers.0.": "model.multi_modal_projector.linear_1.",
    "connector.layers.2.": "model.multi_modal_projector.linear_2.",
    "llm.model.": "model.language_model.",
    "llm.lm_head.": "lm_head.",
}
"""Ours, and theirs."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples as token ids, labels and pixels, tokenized and decoded when asked for, as beni's workers do."""

    samples: Sequence[Sample]
    composer: Composer
    image_token: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        document = self.composer.compose(self.samples[index])
        ids = np.where(document.ids == self.composer.image_token, self.image_token, document.ids)
        item = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(document.labels)}
        if document.images:
            pictures = Pictures(self.composer)
            for image in document.images:
                pictures.load(image)
            item["pixel_values"] = pictures.stack(document.images).pixels["main"]
        return item

    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(self.composer.compose(sample)) for sample in self.samples]


def collate(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A batch padded on the right."""
    batch = {
        "input_ids": pad_sequence([item["input_ids"] for item in items], batch_first=True),
        "labels": pad_sequence([item["labels"] for item in items], batch_first=True, padding_value=IGNORE),
        "attention_mask": pad_sequence([torch.ones_like(item["input_ids"]) for item in items], batch_first=True),
    }
    pixels = [item["pixel_values"] for item in items if "pixel_values" in item]
    return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})


def unused_token(built: Built, samples: Sequence[Sample]) -> int:
    """A token of the vocabulary that no sample has: theirs must be one with an embedding."""
    seen = np.unique(np.concatenate([built.composer.compose(sample).ids for sample in samples]))
    rows = built.model.get_input_embeddings().weight.shape[0]
    return int(next(token for token in range(rows - 1, -1, -1) if token not in seen))


def twin(built: Built, encoder_folder: str, image_token: int) -> LlavaForConditionalGeneration:
    """LLaVA with the same weights; its encoder is frozen, all else is trained.

    Raises:
        RuntimeError: a weight has no place in the other model.
    """
    config = LlavaConfig(
        vision_config=AutoConfig.from_pretrained(encoder_folder),
        text_config=built.model.llm.config.to_dict(),
        image_token_index=image_token,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=next(iter(built.composer.encoders.values())).grid(built.composer.encoders["main"].size).count,
        tie_word_embeddings=built.model.llm.config.tie_word_embeddings,
    )
    config.text_config._attn_implementation = "sdpa"
    model: Any = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    state = {}
    for name, tensor in built.model.state_dict().items():
        ours = next((prefix for prefix in RENAMED if name.startswith(prefix)), None)
        if ours is None and tensor.numel():
            raise RuntimeError(f"transformers' LLaVA has no place for {name}")
        if ours is not None:
            state[RENAMED[ours] + name.removeprefix(ours)] = tensor
    found = model.load_state_dict(state, strict=False)
    last = f"model.vision_tower.encoder.layers.{config.vision_config.num_hidden_layers - 1}."
    unread = (last, "model.vision_tower.post_layernorm.", "lm_head.")  # behind the layer that is read; a tied head
    if missing := [name for name in found.missing_keys if not name.startswith(unread)] + found.unexpected_keys:
        raise RuntimeError(f"{missing[0]} is not in both models")
    model.tie_weights()
    model.model.vision_tower.requires_grad_(False)
    return model
