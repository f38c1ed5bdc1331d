"""Where the time of a step goes."""

from dataclasses import astuple
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from beni.bench.regime import Regime, divide, kind_of


def event(name: str, cpu_ms: float, gpu_ms: float = 0) -> SimpleNamespace:
    return SimpleNamespace(key=name, self_cpu_time_total=1000 * cpu_ms, self_device_time_total=1000 * gpu_ms)


EVENTS = [
    event("aten::addmm", 30, 200),
    event("aten::mkldnn_convolution", 10),
    event("aten::_scaled_dot_product_flash_attention_for_cpu_backward", 10),
    event("aten::native_layer_norm", 20, 50),
    event("aten::_fused_adamw_", 5, 50),
    event("gloo:all_reduce", 5),
    event("autograd::engine::evaluate_function: AddmmBackward0", 9),
]


def test_time_is_divided_by_what_runs() -> None:
    found = divide(EVENTS, wall_s=0.1, waiting_s=0.002, on_gpu=False)
    assert astuple(found) == pytest.approx((0.50, 0.25, 0.05, 0.02, 0.18))
    assert found.bound_by == "compute" and str(found).startswith("bound by compute: ") and "take 50%" in str(found)


def test_on_a_gpu_the_time_there_counts() -> None:
    found = divide(EVENTS, wall_s=1.0, waiting_s=0.0, on_gpu=True)
    assert (found.products, found.other, found.overhead) == (0.2, pytest.approx(0.1), pytest.approx(0.7))
    assert found.bound_by == "overhead"


def test_shares_are_of_the_whole_even_if_operations_overlap() -> None:
    found = divide([event("aten::mm", 80), event("nccl:all_gather", 60)], wall_s=0.1, waiting_s=0, on_gpu=False)
    assert found.products + found.communication == pytest.approx(1) and found.overhead == 0


@pytest.mark.parametrize(
    ("shares", "term"),
    [
        ((0.1, 0.6, 0.1, 0.1, 0.1), "memory traffic"),
        ((0.1, 0.1, 0.6, 0.1, 0.1), "communication"),
        ((0.1, 0.1, 0.1, 0.6, 0.1), "data"),
    ],
)
def test_the_largest_share_bounds(shares: tuple[float, ...], term: str) -> None:
    assert Regime(*shares).bound_by == term


def test_products_are_known_by_the_names_that_the_profiler_gives_them() -> None:
    """Every operation that a small network needs, named as it really runs here."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 8))
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        attended = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        (net(torch.randn(2, 3, 8, 8)).sum() + (attended @ attended.mT).sum()).backward()
    kinds = {each.key: kind_of(each.key) for each in profiler.key_averages()}
    products = {name for name, kind in kinds.items() if kind == "products"}
    for part in ("addmm", "conv", "scaled_dot_product", "attention", "bmm", "backward"):
        assert any(part in name for name in products), (part, products)
    assert kinds["aten::sum"] == "other" and "communication" not in kinds.values()
