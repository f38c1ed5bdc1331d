"""Attention in bf16 beside the same attention in fp32."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_bf16_is_near_fp32(attend: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    """The output and the gradients in bf16 are those of fp32 for the same inputs, to rounding."""
    torch.manual_seed(0)
    drawn = [torch.randn(shape).bfloat16() for shape in shapes]
    direction = torch.randn(shapes[0]).bfloat16()

    def results(dtype: torch.dtype) -> list[Tensor]:
        inputs = [each.to(dtype, copy=True).requires_grad_() for each in drawn]
        out = attend(*inputs)
        assert out.dtype == dtype
        return [out.detach(), *torch.autograd.grad((out * direction.to(dtype)).sum(), inputs)]

    for low, exact in zip(results(torch.bfloat16), results(torch.float32), strict=True):
        torch.testing.assert_close(low.float(), exact, rtol=2**-7, atol=2**-6 * float(exact.abs().max()))
