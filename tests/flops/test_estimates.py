"""Published estimates: worked examples, and what one must know of their differences."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, OPTConfig

from beni.flops.estimates import (
    Decoder,
    chinchilla_forward,
    kaplan_forward_per_token,
    megatron_training,
    palm_training_per_token,
)


def gpt(layers: int, heads: int, width: int, vocabulary: int) -> Decoder:
    """With an MLP of four times the width."""
    return Decoder(layers, heads, width // heads, width, 4 * width, vocabulary)


def matrices(of: Decoder) -> int:
    """Parameters of the layers' matrices."""
    return 12 * of.layers * of.width**2


# model, positions, Kaplan per token, Chinchilla per sequence, PaLM with and without embeddings, Megatron recomputed
WORKED = {
    "tiny": (gpt(2, 2, 8, 10), 4, 3_392, 14_784, 10_464, 9_984, 13_792),
    "GPT-2 small": (
        gpt(12, 12, 768, 50_257),
        1024,
        265_941_504,
        371_148_718_080,
        854_438_400,
        622_854_144,
        1_062_056_448,
    ),
    "GPT-2 XL": (
        gpt(48, 25, 1600, 50_257),
        1024,
        3_267_235_200,
        3_675_160_576_000,
        10_273_545_600,
        9_791_078_400,
        13_537_238_400,
    ),
    "GPT-3": (
        gpt(96, 96, 12_288, 50_257),
        2048,
        353_959_354_368,
        737_449_743_482_880,
        1_076_373_430_272,
        1_072_668_082_176,
        1_433_929_457_664,
    ),
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_examples(name: str) -> None:
    of, length, kaplan, chinchilla, palm, palm_without, megatron = WORKED[name]
    embedding = of.vocabulary * of.width
    assert kaplan_forward_per_token(of, length) == kaplan
    assert sum(chinchilla_forward(of, length).values()) == chinchilla
    assert palm_training_per_token(of, length, matrices(of) + embedding) == palm
    assert palm_training_per_token(of, length, matrices(of)) == palm_without
    assert megatron_training(of, length, 1, recomputed=True) / length == pytest.approx(megatron, rel=1e-12)
    # PaLM's count and Megatron's are one, of a model whose parameters are these matrices and a tied embedding
    assert megatron_training(of, length, 3) / (3 * length) == pytest.approx(palm, rel=1e-12)


def test_terms_of_chinchilla() -> None:
    assert chinchilla_forward(gpt(48, 25, 1600, 50_257), 1024) == {
        "embedding": 164_682_137_600,
        "qkv": 754_974_720_000,
        "scores": 161_061_273_600,
        "softmax": 3_774_873_600,
        "values": 161_061_273_600,
        "out": 251_658_240_000,
        "mlp": 2_013_265_920_000,
        "logits": 164_682_137_600,
    }


def test_the_utilisation_that_palm_reports() -> None:
    palm = Decoder(118, 48, 256, 18_432, 73_728, 256_000)
    per_token = palm_training_per_token(palm, 2048, 540_350_000_000)
    assert 238_300 * per_token / (6144 * 275e12) == pytest.approx(0.46229, abs=1e-5)
    assert pytest.approx(0.45726, abs=1e-5) == 238_300 * 6 * 540_350_000_000 / (6144 * 275e12)


def test_tinyllama() -> None:
    of = Decoder.of(LlamaConfig(hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, intermediate_size=5632))
    parameters = 1_100_048_384
    assert palm_training_per_token(of, 2048, parameters) == 7_707_586_560
    without = palm_training_per_token(of, 2048, parameters - 32_000 * 2048)
    assert 24_000 * without / 312e12 == pytest.approx(0.563, abs=1e-3)


def test_sizes_come_from_a_configuration() -> None:
    assert Decoder.of(GPT2Config()) == gpt(12, 12, 768, 50_257)
    wide = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=32, intermediate_size=96, vocab_size=7)
    assert (Decoder.of(wide).attention_width, Decoder.of(wide).ff_width) == (128, 96)
    assert Decoder.of(OPTConfig(ffn_dim=100)).ff_width == 100


def test_sizes_that_a_configuration_does_not_have_are_not_guessed() -> None:
    def config(**sizes: Any) -> Any:
        text = SimpleNamespace(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=5, **sizes)
        return SimpleNamespace(get_text_config=lambda: text)

    assert Decoder.of(config(intermediate_size=24)).ff_width == 24
    with pytest.raises(AttributeError, match="different widths"):
        Decoder.of(config(intermediate_size=[64, 128]))
    with pytest.raises(AttributeError, match="has none of intermediate_size"):
        Decoder.of(config())
