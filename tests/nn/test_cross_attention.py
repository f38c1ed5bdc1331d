"""Cross-attention reads exactly the slice it is told to."""

import numpy as np
import pytest
import torch

from beni.nn.attention import cross_attention
from beni.nn.plan import CrossPlan, plan_cross
from tests.nn.naive import naive_attention
from tests.nn.rounded import assert_bf16_is_near_fp32

MEMORY = 12


def random_spans(rng: np.random.Generator) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Trees of a row, and for each position the slice it reads, empty for about a third of them."""
    lengths = rng.integers(1, 7, 6)
    ends = np.cumsum(lengths)
    spans = np.zeros((int(ends[-1]), 2), dtype=np.int64)
    for row in spans:
        if rng.random() < 0.7:
            row[:] = np.sort(rng.choice(MEMORY - 2, 2, replace=False))  # the memory's end is read by nobody
    spans[: lengths[0]] = 0  # a whole tree that reads nothing
    return [(int(end - n), int(end)) for n, end in zip(lengths, ends, strict=True)], spans


def inputs(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    q = torch.randn(length, 2, 8, requires_grad=True)
    k, v = (torch.randn(MEMORY, 2, 8, requires_grad=True) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("seed", range(4))
def test_equals_naive_attention(seed: int) -> None:
    ranges, spans = random_spans(np.random.default_rng(seed))
    q, k, v = inputs(len(spans))
    direction = torch.randn_like(q)
    expected = naive_attention(q, k, v, [range(*span) for span in spans.tolist()])
    wanted = torch.autograd.grad((expected * direction).sum(), (q, k, v))
    out = cross_attention(q, k, v, plan_cross(ranges, spans))
    found = torch.autograd.grad((out * direction).sum(), (q, k, v))

    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    empty = torch.from_numpy(spans[:, 0] == spans[:, 1])
    assert (out[empty] == 0).all(), "what reads nothing gets exactly zero"
    assert (found[1][-2:] == 0).all(), "what is read by nobody gets exactly zero gradient"


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_bf16_is_near_fp32(kv_heads: int) -> None:
    ranges, spans = random_spans(np.random.default_rng(0))
    plan = plan_cross(ranges, spans)
    shapes = [(len(spans), 4, 8), (MEMORY, kv_heads, 8), (MEMORY, kv_heads, 8)]
    assert_bf16_is_near_fp32(lambda q, k, v: cross_attention(q, k, v, plan), shapes)


def test_nobody_reads() -> None:
    q, k, v = inputs(5)
    out = cross_attention(q, k, v, plan_cross([(0, 5)], np.zeros((5, 2), dtype=np.int64)))
    assert (out == 0).all()
    for gradient in torch.autograd.grad(out.sum(), (q, k, v), allow_unused=True):
        assert gradient is not None, "every rank must send its gradients"
        assert (gradient == 0).all()


def test_steps_see_what_the_last_position_saw() -> None:
    spans = np.array([[0, 0], [0, 3], [0, 0], [0, 0], [3, 7], [7, 9]])
    q, k, v = inputs(6)
    plan = plan_cross([(0, 2), (2, 4), (4, 6)], spans)
    last = [range(0, 3), range(0), range(7, 9)]
    one = cross_attention(q[:3], k, v, plan.step(1))
    torch.testing.assert_close(one, naive_attention(q[:3], k, v, last))
    two = cross_attention(q, k, v, plan.step(2))
    torch.testing.assert_close(two, naive_attention(q, k, v, [seen for seen in last for _ in range(2)]))
    again = cross_attention(q[:3], k, v, plan.step(1).step(1))
    torch.testing.assert_close(again, one)


def test_plans_move_between_devices() -> None:
    ranges, spans = random_spans(np.random.default_rng(0))
    moved = plan_cross(ranges, spans).to(torch.device("meta"))
    assert isinstance(moved, CrossPlan)
    assert moved.slot_T.is_meta and all(tensor.is_meta for bucket in moved.buckets for tensor in bucket)
