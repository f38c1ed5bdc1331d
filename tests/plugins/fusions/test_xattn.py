"""Gated cross-attention equals OpenFlamingo's."""

import numpy as np
import pytest
import torch

from beni.errors import ConfigError
from beni.interfaces import FusionContext, LLMSpec
from beni.nn.plan import plan_cross
from beni_plugins.fusions.xattn import CrossAttention, CrossAttentionConfig, GatedCrossAttentionBlock
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
    return FusionContext(media.flatten(0, 2), plan_cross(ranges, np.array(spans)))


def test_reference_numbers() -> None:
    block = fill(
        GatedCrossAttentionBlock(CrossAttentionConfig(heads=2, head_width=4, ff_multiple=2), 8, 6), reference_name
    )
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
    block = GatedCrossAttentionBlock(CrossAttentionConfig(heads=4, head_width=8), 32, 24)
    load_reference(block, file["w"], reference_name)
    context = immediate(file["in"]["media"], file["in"]["media_locations"])
    torch.testing.assert_close(block(file["in"]["x"], context), file["out"]["y"], rtol=1e-4, atol=1e-5)


def test_closed_gates_change_nothing() -> None:
    torch.manual_seed(0)
    block = GatedCrossAttentionBlock(CrossAttentionConfig(heads=2, head_width=4), 8, 6)
    x_BTD = torch.randn(1, 6, 8)
    context = immediate(torch.randn(1, 2, 3, 6), torch.tensor([[0, 1, 0, 0, 1, 0]]))
    assert torch.equal(block(x_BTD, context), x_BTD)


@pytest.mark.parametrize(("every", "layers"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (4, [3])])
def test_a_block_before_every_nth_layer(every: int, layers: list[int]) -> None:
    fusion = CrossAttention(CrossAttentionConfig(every=every, heads=1, head_width=4), LLMSpec(8, 4), 6)
    assert list(fusion.inserts()) == layers
    assert all(insert.before for insert in fusion.inserts().values())


def test_refuses_a_fusion_without_blocks() -> None:
    with pytest.raises(ConfigError, match=r"every 5th layer.*--fusion.every"):
        CrossAttention.check(CrossAttentionConfig(every=5), LLMSpec(8, 4))
    with pytest.raises(ConfigError, match="every"):
        CrossAttentionConfig(every=0)
