"""Spatial aggregation equals Cambrian's."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from beni.nn.aggregator import SpatialAggregator, Variant
from beni.types import Windows
from tests.golden.reference import assert_numbers, det, fill, golden, load_reference

EXPECTED = {
    ("joint", 1): (
        -3.2737437937,
        45.3514677065,
        [-2.3390329610, -0.6985476221, 2.0310571642, 1.1429408433],
        [-1.2527550115, 0.3949262225],
    ),
    ("joint", 2): (
        -8.4166128497,
        83.8374762940,
        [-3.8046099726, -2.5655584151, 2.7386096322, 3.2972248211],
        [-1.6940582019, 2.0829497027],
    ),
    ("sep", 1): (
        1.2352245673,
        61.2230278999,
        [0.2752638808, -1.6506391504, -0.9697980997, 0.8766559432],
        [0.0927514727, -3.4568060077],
    ),
}


def sep_name(name: str) -> str:
    """The reference wraps each encoder's part in a module."""
    head, _, rest = name.partition(".aggregate_")
    return f"{head}.aggregate_{rest[0]}.attention_layer.{rest[2:]}" if rest else name


@pytest.mark.parametrize(("variant", "depth"), EXPECTED)
def test_reference_numbers(variant: Variant, depth: int) -> None:
    sampler = fill(SpatialAggregator(8, (1, 4), 16, heads=16, depth=depth, variant=variant), sep_name)
    visible = torch.ones(4, 4, dtype=torch.bool)
    visible[0, 2:] = False
    keys = (det((4, 1, 16), 57), det((4, 4, 16), 58))
    windows = Windows(keys, (torch.ones(4, 1, dtype=torch.bool), visible), det((4, 1, 16), 56)[:, 0])
    assert_numbers(sampler(det((4, 1, 8), 55)[:, 0], windows), *EXPECTED[variant, depth])


def test_reference_file() -> None:
    """Two encoders of 8x8 and 12x12 tokens under 4x4 queries, with padded areas."""
    file = golden("cambrian_sva")
    sampler = SpatialAggregator(32, (4, 9), 32, heads=16, depth=2)
    load_reference(sampler, file["w"])

    def window(map_: Tensor, side: int) -> Tensor:
        return rearrange(map_, "b (q r p s) ... -> (b q p) (r s) ...", q=4, p=4, r=side // 4, s=side // 4)

    keys = tuple(window(file["in"][f"features_{i}"], side) for i, side in enumerate((8, 12)))
    visible = tuple(window(file["in"][f"mask_{i}"].bool(), side) for i, side in enumerate((8, 12)))
    visible = tuple(v | ~v.any(1, keepdim=True) for v in visible)
    context = file["in"]["context"].repeat_interleave(16, dim=0)
    out = sampler(file["in"]["query"].expand(32, -1), Windows(keys, visible, context))
    torch.testing.assert_close(out, file["out"]["tokens"].flatten(0, 1), rtol=1e-4, atol=1e-5)
    assert not all(bool(v.all()) for v in visible)


def test_hidden_tokens_do_not_matter() -> None:
    torch.manual_seed(0)
    sampler = SpatialAggregator(8, (4,), 16, heads=4, depth=2)
    visible = torch.tensor([[True, True, False, True]])
    keys = torch.randn(1, 4, 16)
    other = keys.clone()
    other[0, 2] += 1
    q, context = torch.randn(1, 8), torch.randn(1, 16)
    one, two = (sampler(q, Windows((k,), (visible,), context)) for k in (keys, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, sampler(q, Windows((other,), (~visible | visible,), context)))


@pytest.mark.parametrize("variant", ["joint", "sep"])
def test_no_queries_are_no_exception(variant: Variant) -> None:
    """Decoding goes on behind the images: every parameter still takes part."""
    sampler = SpatialAggregator(8, (1, 4), 16, heads=4, depth=1, variant=variant)
    keys = (torch.zeros(0, 1, 16), torch.zeros(0, 4, 16))
    visible = (torch.zeros(0, 1, dtype=torch.bool), torch.zeros(0, 4, dtype=torch.bool))
    sampler(torch.zeros(0, 8), Windows(keys, visible, torch.zeros(0, 16))).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in sampler.parameters())


def test_a_single_encoder_needs_no_weight() -> None:
    torch.manual_seed(0)
    sampler = SpatialAggregator(8, (4,), 16, heads=4, depth=1, variant="sep")
    windows = Windows((torch.randn(3, 4, 16),), (torch.ones(3, 4, dtype=torch.bool),), torch.randn(3, 16))
    sampler(torch.randn(3, 8), windows).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in sampler.parameters())
