"""Gated cross-attention equals OpenFlamingo's and Llama 3.2 Vision's."""

from typing import Any, Literal

import numpy as np
import pytest
import torch

from beni.errors import ConfigError
from beni.interfaces import FusionContext, LLMSpec, VisualSpec
from beni.nn.plan import plan_cross
from beni_plugins.fusions.xattn import CrossAttention, CrossAttentionConfig, FlamingoBlock, MllamaBlock
from tests.golden.reference import assert_numbers, det, fill, golden, load_reference


def reference_name(name: str) -> str:
    """The reference has its attention in a module of its own."""
    return f"attn.{name}" if name.split(".")[0] in ("norm", "to_q", "to_kv", "to_out") else name


def immediate(media: torch.Tensor, locations: torch.Tensor) -> FusionContext:
    """Every position reads the last image at or before it; media [B, images, latents, E], locations [B, T]."""
    rows, images, latents, _ = media.shape
    spans = []
    for row, marks in enumerate(locations.bool().tolist()):
        seen = 0
        for mark in marks:
            seen += mark
            first = (row * images + seen - 1) * latents
            spans.append((first, first + latents) if seen else (0, 0))
    length = locations.shape[1]
    ranges = [(row * length, (row + 1) * length) for row in range(rows)]
    return reading(media.flatten(0, 2), ranges, spans)


def reading(memory: torch.Tensor, ranges: list[tuple[int, int]], spans: list[tuple[int, int]]) -> FusionContext:
    return FusionContext(memory, plan_cross(ranges, np.array(spans)), torch.empty(0, dtype=torch.long))


def test_reference_numbers() -> None:
    block = fill(FlamingoBlock(CrossAttentionConfig(heads=2, head_width=4, ff_multiple=2), 8, 6), reference_name)
    context = immediate(det((1, 2, 3, 6), 54), torch.tensor([[0, 1, 0, 0, 1, 0]]))
    assert_numbers(
        block(det((1, 6, 8), 53), context),
        91.0813510069,
        607.4413549945,
        [-1.4748564463, -3.7427804849, 0.2654794066, 4.3896093990],
        [26.9467451502, 12.3690704606],
    )


def test_reference_file() -> None:
    file = golden("flamingo_gated_xattn")
    block = FlamingoBlock(CrossAttentionConfig(heads=4, head_width=8), 32, 24)
    load_reference(block, file["w"], reference_name)
    context = immediate(file["in"]["media"], file["in"]["media_locations"])
    torch.testing.assert_close(block(file["in"]["x"], context), file["out"]["y"], rtol=1e-4, atol=1e-5)


def mllama_name(name: str) -> str:
    """The reference's attention is a module of its own, and its gates have longer names."""
    head = name.split(".")[0]
    if head in ("attn_gate", "ff_gate"):
        return {"attn_gate": "cross_attn_attn_gate", "ff_gate": "cross_attn_mlp_gate"}[head]
    return f"cross_attn.{name}" if head in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm") else name


MLLAMA: dict[str, Any] = {"variant": "mllama", "heads": 4, "kv_heads": 2}


def test_mllama_numbers() -> None:
    """Two images of two tiles, of which the second has only one; the first token sees none (Meta's rule)."""
    block = MllamaBlock(CrossAttentionConfig(**MLLAMA, head_width=4, ff_multiple=1.5), 16, 16)
    fill(block, mllama_name)
    context = reading(det((1, 12, 16), 62)[0], [(0, 5)], [(0, 0), (0, 6), (0, 6), (6, 9), (6, 9)])
    assert_numbers(
        block(det((1, 5, 16), 61), context),
        -2.4354376726,
        485.3164574145,
        [-0.3789811885, -0.4999718431, -0.3858179276, -0.0902078122],
        [6.8957945622, 3.8378837283],
        rtol=1e-6,  # the reference's norms compute in float32
    )


def test_where_the_references_differ() -> None:
    """Only text that sees no image: OpenFlamingo gives it the mean of all values, transformers' Mllama lets it attend,
    in both to images behind it, too."""
    flamingo = fill(FlamingoBlock(CrossAttentionConfig(heads=2, head_width=4, ff_multiple=2), 8, 6), reference_name)
    media, x_BTD = det((1, 2, 3, 6), 54), det((1, 6, 8), 53)
    spans = [(0, 0), (0, 3), (0, 3), (0, 3), (0, 6), (0, 6)]
    out_BTD = flamingo(x_BTD, reading(media.flatten(0, 2), [(0, 6)], spans))
    values_MV = flamingo.to_kv(media.flatten(0, 2)).chunk(2, dim=-1)[1]  # type: ignore[operator]
    first_D = x_BTD[0, 0] + flamingo.attn_gate.tanh() * flamingo.to_out(values_MV.mean(0))  # type: ignore[operator]
    out_BTD[0, 0] = first_D + flamingo.ff_gate.tanh() * flamingo.ff(first_D)  # type: ignore[operator]
    assert_numbers(
        out_BTD,
        91.0514989704,
        606.8628185851,
        [-1.2572168414, -3.7447576943, 0.0408926473, 4.2995289973],
        [26.9681452095, 12.3553931435],
    )
    mllama = MllamaBlock(CrossAttentionConfig(**MLLAMA, head_width=4, ff_multiple=1.5), 16, 16)
    fill(mllama, mllama_name)
    memory_MD, x_BTD = det((1, 12, 16), 62)[0], det((1, 5, 16), 61)
    spans = [(0, 0), (0, 6), (0, 6), (6, 9), (6, 9)]
    out_BTD = mllama(x_BTD, reading(memory_MD, [(0, 5)], spans))
    mllama.ff_gate.data.zero_()  # such text has no feed-forward in the reference, either
    out_BTD[0, 0] = mllama(x_BTD, reading(memory_MD, [(0, 5)], [(0, 12), *spans[1:]]))[0, 0]
    assert_numbers(
        out_BTD,
        -1.4357440408,
        490.5417046733,
        [-0.4919231899, 0.4242335141, 0.1023604392, -0.8162080037],
        [6.8957945622, 3.8378837283],
        rtol=1e-6,  # the reference's norms compute in float32
    )


def test_mllama_file() -> None:
    """Text that sees an image: elsewhere the reference attends to everything, where Meta's rule gives nothing."""
    file = golden("mllama_xattn")
    block = MllamaBlock(CrossAttentionConfig(**MLLAMA, head_width=8, ff_multiple=2), 32, 32)
    load_reference(block, file["w"], mllama_name)
    sees, visual = file["in"]["row_mask"][:, 0, :, 0].bool(), file["in"]["visual"]
    visible = file["in"]["additive_mask"][:, 0] > -1
    spans = []
    for row in range(2):
        for position in range(7):
            at = visible[row, position].nonzero()[:, 0] + row * 10
            assert not sees[row, position] or at[-1] - at[0] + 1 == len(at)
            spans.append((int(at[0]), int(at[-1]) + 1) if sees[row, position] else (0, 0))
    x_BTD = file["in"]["hidden"]
    out_BTD = block(x_BTD, reading(visual.flatten(0, 1), [(0, 7), (7, 14)], spans))
    torch.testing.assert_close(out_BTD[sees], file["out"]["hidden"][sees], rtol=1e-4, atol=1e-5)
    assert torch.equal(out_BTD[~sees], x_BTD[~sees])
    assert 0 < sees.sum() < sees.numel()


@pytest.mark.parametrize(("variant", "reads"), [("flamingo", "last"), ("mllama", "run")])
def test_what_a_token_reads(variant: Literal["flamingo", "mllama"], reads: str) -> None:
    assert CrossAttentionConfig(variant=variant).reads == reads
    assert CrossAttentionConfig(variant=variant, images="all").reads == "all"


@pytest.mark.parametrize("block_class", [FlamingoBlock, MllamaBlock])
def test_closed_gates_change_nothing(block_class: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    block = block_class(CrossAttentionConfig(heads=2, head_width=4), 8, 6)
    x_BTD = torch.randn(1, 6, 8)
    context = immediate(torch.randn(1, 2, 3, 6), torch.tensor([[0, 1, 0, 0, 1, 0]]))
    assert torch.equal(block(x_BTD, context), x_BTD)


@pytest.mark.parametrize(("every", "layers"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (4, [3])])
def test_a_block_before_every_nth_layer(every: int, layers: list[int]) -> None:
    fusion = CrossAttention(CrossAttentionConfig(every=every, heads=1, head_width=4), LLMSpec(8, 4), VisualSpec(6))
    assert list(fusion.inserts()) == layers
    assert all(insert.before for insert in fusion.inserts().values())


def test_refuses_a_fusion_without_blocks() -> None:
    with pytest.raises(ConfigError, match=r"every 5th layer.*--fusion.every"):
        CrossAttention.check(CrossAttentionConfig(every=5), LLMSpec(8, 4), VisualSpec(6))
    with pytest.raises(ConfigError, match=r"before layer 4.*0 to 3.*--fusion.layers"):
        CrossAttention.check(CrossAttentionConfig(layers=(1, 4)), LLMSpec(8, 4), VisualSpec(6))
    with pytest.raises(ConfigError, match=r"--fusion\.every"):
        CrossAttentionConfig(every=0)
    with pytest.raises(ConfigError, match=r"--fusion\.layers"):
        CrossAttentionConfig(layers=(1, 1))
    with pytest.raises(ConfigError, match=r"--fusion.kv-heads 3 .* heads 4"):
        CrossAttentionConfig(variant="mllama", kv_heads=3)


def test_a_block_before_each_layer_of_a_list() -> None:
    fusion = CrossAttention(CrossAttentionConfig(layers=(0, 3), heads=1, head_width=4), LLMSpec(8, 4), VisualSpec(6))
    assert list(fusion.inserts()) == [0, 3]
