"""Where a causal language model and its tokenizer come from."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from beni.config import PartConfig
from beni.pretrained import Provenance


class LanguageModel(ABC):
    """Where a causal LM comes from. Not a module: the model itself is any Hugging Face causal LM, untouched."""

    beni_api: ClassVar[int]
    Config: ClassVar[type[PartConfig]]
    pretrained: ClassVar[bool]
    """Whether `build` returns trained weights (then the LLM is frozen by default)."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """The tokenizer. `texts` are the run's training texts, for an LLM that learns its vocabulary from them."""

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, Provenance | None]:
        """The model in fp32 and where its weights came from."""
