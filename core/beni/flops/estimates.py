"""What is commonly written for the operations of a language model, beside which the count of this package is printed.

Sources: Kaplan et al. 2020 (arXiv 2001.08361, table 1), Hoffmann et al. 2022 (Chinchilla, arXiv 2203.15556, appendix
F), Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B), Narayanan et al. 2021 (Megatron-LM, arXiv 2104.04473,
section 5.1). They differ: Kaplan counts one of the two products of attention and no softmax; Chinchilla takes the
look-up of an embedding for a product, and counts softmax; PaLM counts six operations per parameter and token. None
halves attention for its mask.
"""

from dataclasses import dataclass
from typing import Any

_FF_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")
"""What configurations call the width of the MLP; None in one of them means four times the model's."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a language model."""

    layers: int
    heads: int
    head_width: int
    width: int
    ff_width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "Decoder":
        """Those of a transformers configuration.

        Raises:
            AttributeError: it names one of them in its own way, or its layers differ.
        """
        text = config.get_text_config()
        heads, width = text.num_attention_heads, text.hidden_size
        head_width = getattr(text, "head_dim", None) or width // heads
        named = [name for name in _FF_WIDTHS if hasattr(text, name)]
        if not named:
            raise AttributeError(f"{type(text).__name__} has none of {', '.join(_FF_WIDTHS)}")
        ff_width = getattr(text, named[0]) or 4 * width
        if not isinstance(ff_width, int):
            raise AttributeError(f"{type(text).__name__} has layers of different widths: {named[0]} is {ff_width}")
        return cls(text.num_hidden_layers, heads, head_width, width, ff_width, text.vocab_size)

    @property
    def attention_width(self) -> int:
        """Channels of all heads together."""
        return self.heads * self.head_width


def kaplan_forward_per_token(of: Decoder, length: int) -> int:
    """Forward operations of one token among so many, by Kaplan et al.; in training three times as many."""
    d, a = of.width, of.attention_width
    layer = 2 * d * 3 * a + 2 * length * a + 2 * a * d + 2 * 2 * d * of.ff_width
    return 4 * d + of.layers * layer + 2 * d * of.vocabulary


def chinchilla_forward(of: Decoder, length: int) -> dict[str, int]:
    """Forward operations of one sequence by term, by Hoffmann et al.; in training three times as many."""
    t, d, a = length, of.width, of.attention_width
    return {
        "embedding": 2 * t * of.vocabulary * d,
        "qkv": of.layers * 2 * t * 3 * d * a,
        "scores": of.layers * 2 * t * t * a,
        "softmax": of.layers * 3 * of.heads * t * t,
        "values": of.layers * 2 * t * t * a,
        "out": of.layers * 2 * t * a * d,
        "mlp": of.layers * 2 * t * 2 * d * of.ff_width,
        "logits": 2 * t * d * of.vocabulary,
    }


def palm_training_per_token(of: Decoder, length: int, parameters: int) -> int:
    """Operations of one token in training, by Chowdhery et al.: the numerator of their MFU.

    Args:
        parameters: what is counted varies by author: with or without embeddings.
    """
    return 6 * parameters + 12 * of.layers * of.heads * of.head_width * length


def megatron_training(of: Decoder, length: int, sequences: int, recomputed: bool = False) -> float:
    """Operations of one iteration, by Narayanan et al.: of the model, or with all activations recomputed.

    Their formula is for an MLP of four times the width and heads that share it.
    """
    times, vocabulary = (96, 16) if recomputed else (72, 12)
    base = times * sequences * length * of.layers * of.width**2
    return base * (1 + length / (6 * of.width) + of.vocabulary / (vocabulary * of.layers * of.width))
