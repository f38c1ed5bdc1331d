"""Any Hugging Face causal language model, by id or folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import LanguageModel, Provenance


@dataclass(frozen=True, slots=True)
class HfLanguageModelConfig(PartConfig):
    argument: ClassVar[str] = "model"

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Hugging Face id or folder."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""


class HfLanguageModel(LanguageModel):
    """Loaded as it was published, in fp32."""

    beni_api = 1
    Config = HfLanguageModelConfig
    pretrained: ClassVar[bool] = True

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        try:
            return AutoTokenizer.from_pretrained(self.config.model, revision=self.config.revision)
        except (OSError, ValueError) as error:
            raise self._missing(error) from error

    def build(self, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, Provenance | None]:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.config.model, revision=self.config.revision, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise self._missing(error) from error
        if Path(self.config.model).is_dir():
            return model, Provenance(self.config.model)
        commit = getattr(model.config, "_commit_hash", None)
        return model, Provenance(f"{self.config.model}@{commit or self.config.revision}")

    def _missing(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"language model '{self.config.model}' cannot be loaded: {str(error).splitlines()[0]} (an id needs the hub "
            f"or its local cache; a folder needs config.json, weights and tokenizer files)"
        )
