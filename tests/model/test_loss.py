"""The loss is PyTorch's cross-entropy in fp32, whatever the dtype of the logits and however many there are."""

import pytest
import torch
import torch.nn.functional as F

from beni.model import loss as module
from beni.model.loss import summed_cross_entropy


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_cross_entropy_in_fp32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, weighted: bool, at_once: int
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", {"cpu": at_once})
    torch.manual_seed(0)
    logits = (30 * torch.randn(7, 13)).to(dtype).requires_grad_()
    targets = torch.randint(13, (7,))
    weights = torch.rand(7) if weighted else None
    loss = summed_cross_entropy(logits, targets, weights)
    [found] = torch.autograd.grad(3 * loss, logits)
    each = F.cross_entropy(logits.float(), targets, reduction="none")
    wanted = (each if weights is None else each * weights).sum()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(found, torch.autograd.grad(3 * wanted, logits)[0])
    assert loss.dtype is torch.float32 and found.dtype is dtype


def test_without_targets_it_is_zero_and_so_are_its_gradients() -> None:
    hidden = torch.randn(3, 5, requires_grad=True)
    loss = summed_cross_entropy(hidden[:0], torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and hidden.grad is not None and not hidden.grad.any()


def test_keeps_nothing_of_the_size_of_all_logits_but_them() -> None:
    logits = torch.randn(8, 64, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        summed_cross_entropy(logits, torch.randint(64, (8,)))
    large = [tensor for tensor in kept if tensor.numel() >= logits.numel()]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]
