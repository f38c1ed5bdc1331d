"""Packed attention equals attention written out position by position."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from beni.nn.attention import packed_attention
from beni.nn.plan import plan_row, trees
from beni.types import Segment
from tests.nn.naive import naive_attention, random_row, visible
from tests.nn.rounded import assert_bf16_is_near_fp32


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("window", "softcap", "scale"), [(None, None, None), (3, None, 0.3), (None, 1.5, None), (5, 0.7, 0.5)]
)
def test_equals_naive_attention(
    seed: int, kv_heads: int, window: int | None, softcap: float | None, scale: float | None
) -> None:
    segments, positions = random_row(np.random.default_rng(seed), trees=7)
    assert any(segments[s.parent].parent >= 0 for s in segments if s.parent >= 0), "no grandchild: a poor example"
    torch.manual_seed(seed)
    q, k, v = (torch.randn(len(positions), heads, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    seen = [visible(segments, positions, t, window) for t in range(len(positions))]
    direction = torch.randn_like(q)

    expected = naive_attention(q, k, v, seen, softcap, scale)
    wanted = torch.autograd.grad((expected * direction).sum(), (q, k, v))
    out = packed_attention(q, k, v, plan_row(segments, positions), scale, window, softcap)
    found = torch.autograd.grad((out * direction).sum(), (q, k, v))

    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing() -> None:
    lengths = [33, 36]
    segments, positions = [Segment(0, 33), Segment(33, 69)], np.concatenate([np.arange(n) for n in lengths])
    plan = plan_row(segments, positions)
    assert [bucket.index_BL.shape for bucket in plan.buckets] == [(2, 36)], "both in one bucket, one of them padded"
    torch.manual_seed(0)
    q, k, v, direction = (torch.randn(69, 2, 4, requires_grad=True) for _ in range(4))
    together = packed_attention(q, k, v, plan)
    alone = [
        packed_attention(*inputs, plan_row([Segment(0, n)], np.arange(n)))
        for n, *inputs in zip(lengths, *(x.split(lengths) for x in (q, k, v)), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad((x * direction).sum(), (q, k, v)) for x in (together, torch.cat(alone)))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_bf16_is_near_fp32(kv_heads: int, window: int | None) -> None:
    segments, positions = random_row(np.random.default_rng(0), trees=7)
    plan = plan_row(segments, positions)
    shapes = [(len(positions), heads, 8) for heads in (4, kv_heads, kv_heads)]
    assert_bf16_is_near_fp32(lambda q, k, v: packed_attention(q, k, v, plan, window=window), shapes)


def test_other_trees_and_siblings_are_invisible() -> None:
    segments = [Segment(0, 4), Segment(4, 7, 0), Segment(7, 9, 0), Segment(9, 12)]
    plan = plan_row(segments, np.array([0, 1, 2, 3, 4, 5, 6, 4, 5, 0, 1, 2]))
    torch.manual_seed(0)
    q, k, v = (torch.randn(12, 2, 4) for _ in range(3))
    before = packed_attention(q, k, v, plan)
    k[4:7] += 1
    v[4:7] += 1
    after = packed_attention(q, k, v, plan)
    changed = (before != after).any(-1).any(-1)
    assert changed.tolist() == [t in (4, 5, 6) for t in range(12)]


def test_long_rows_waste_little() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 60)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    segments = [Segment(int(a), int(b)) for a, b in pairwise(starts)]
    plan = plan_row(segments, np.concatenate([np.arange(n) for n in lengths]))
    assert sum(bucket.index_BL.numel() for bucket in plan.buckets) <= 1.125 * lengths.sum()
    assert all(bucket.mask_B1LL is None for bucket in plan.buckets), "plain documents need no mask"


@pytest.mark.parametrize(
    ("segments", "complaint"),
    [
        ([Segment(0, 3), Segment(4, 6)], "segment 1"),
        ([Segment(1, 3)], "segment 0"),
        ([Segment(0, 3), Segment(2, 5)], "segment 1"),
        ([Segment(0, 3), Segment(3, 3)], "segment 1"),
        ([Segment(0, 3, 0)], "parent 0"),
        ([Segment(0, 3), Segment(3, 5, 1)], "parent 1"),
        ([Segment(0, 3), Segment(3, 5, 2), Segment(5, 6)], "parent 2"),
        ([Segment(0, 3), Segment(3, 5), Segment(5, 6, 0)], "parent 0"),
    ],
    ids=["gap", "does not start at 0", "overlap", "empty", "own root", "itself", "later", "other tree"],
)
def test_refuses_rows_that_are_none(segments: list[Segment], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        trees(segments)
    with pytest.raises(ValueError, match=complaint):
        plan_row(segments, np.arange(segments[-1].end))


def test_refuses_positions_of_another_row() -> None:
    with pytest.raises(ValueError, match=r"6 tokens.*7 positions"):
        plan_row([Segment(0, 3), Segment(3, 6)], np.arange(7))


def test_parents_count_from_the_tree() -> None:
    groups = trees([Segment(0, 2), Segment(2, 4), Segment(4, 5, 1), Segment(5, 6, 2)])
    assert groups == [[Segment(0, 2)], [Segment(2, 4), Segment(4, 5, 0), Segment(5, 6, 1)]]
