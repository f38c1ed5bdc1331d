"""Families of language models and encoders that are tested, each built small from its own config.

`python -m tests.model.families` writes docs/families.md.
"""

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging import version
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from beni.errors import IncompatiblePartsError
from beni.model.llm import use_packed_attention
from tests.plugins.encoders import test_hf, test_open_clip, test_timm

PAGE = Path(__file__).parents[2] / "docs" / "families.md"

WINDOW = 6
"""Shorter than the documents, so that a window that is ignored shows."""
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.1}
NO_GQA = {"num_key_value_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "mistral": COMMON | {"sliding_window": WINDOW},
    "mixtral": COMMON | {"num_local_experts": 4},
    "qwen2": COMMON | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": COMMON,
    "gemma2": COMMON | {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": COMMON | {"sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "phi3": COMMON | {"sliding_window": WINDOW, "pad_token_id": 0},
    "gpt2": GPT2,
    "opt": COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.1},
    "gpt_neox": COMMON,
    "olmo2": COMMON | NO_GQA,
    "smollm3": COMMON | {"pad_token_id": 0},
    "granite": COMMON | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "cohere": COMMON,
}
REFUSED: dict[str, dict[str, Any]] = {
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
}
(FAMILIES if version.parse(transformers.__version__) >= version.parse("5.24") else REFUSED)["gptj"] = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "rotary_dim": 8,
    "initializer_range": 0.1,
}
"""Its attention goes through transformers' interface since 5.24."""


def llm(family: str, options: dict[str, Any], vocabulary: int = 300) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **options | {"vocab_size": vocabulary})
    return AutoModelForCausalLM.from_config(config)


def refusal(family: str) -> str:
    """Why a family is refused, as its user is told; empty where it is not."""
    try:
        use_packed_attention(llm(family, (FAMILIES | REFUSED)[family]))
    except IncompatiblePartsError as error:
        return str(error)
    return ""


def page() -> str:
    """Both tables as Markdown; what they claim is what the tests assert of every family in them."""
    lines = [
        "# Families that are tested",
        "",
        "Built small from their configurations, with the installed libraries. `python -m tests.model.families` writes",
        "this page, and the tests compare it.",
        "",
        "## Language models",
        "",
        "*yes*: packed rows equal separate ones, logits and gradients, and the family's own eager attention; blocks of",
        "a fusion run beside every layer; three steps lower the loss; padded batches generate what single rows do.",
        "",
        "| family | works |",
        "|---|---|",
        *(f"| {family} | {refusal(family) or 'yes'} |" for family in sorted(FAMILIES | REFUSED)),
        "",
        "## Encoders",
        "",
        "Features equal the library's own, crops do not mix, every parameter gets a gradient, and a saved model",
        "reloads.",
        "",
        "| library | families |",
        "|---|---|",
        f"| transformers (`hf`) | {', '.join(test_hf.MODELS)} |",
        f"| timm (`timm`) | {', '.join(sorted(test_timm.MODELS | test_timm.LAYERED))} |",
        f"| open_clip (`open_clip`) | {', '.join(test_open_clip.TOWERS)} |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    PAGE.write_text(page(), encoding="utf-8")
