"""Batch norms with constant statistics."""

from collections.abc import Callable

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from beni.nn.norms import hold_batch_norms
from tests.model.small import CONVERSATIONS, inputs, make


def network(norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Conv2d(4, 4, 3), norm(4))
    with torch.no_grad():
        made.train()
        for _ in range(3):
            made(torch.randn(8, 3, 9, 9) * 2 + 1)
    return made


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_statistics_are_constants(norm: Callable[[int], nn.Module]) -> None:
    net = network(norm)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(2, 3, 9, 9)
    expected = net.eval()(x)
    net.train()
    assert not torch.allclose(net(x), expected), "a poor example"
    net.load_state_dict(before)
    hold_batch_norms(net)
    for training in (True, False):
        net.train(training)
        assert torch.equal(net(x), expected)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net[1].load_state_dict({name: value + 1 for name, value in net[1].state_dict().items()})
    assert not torch.equal(net(x), expected), "statistics can still be loaded"


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_parameters_may_be_lowered_without_their_buffers(norm: Callable[[int], nn.Module]) -> None:
    """As FSDP does: bf16 parameters beside fp32 statistics."""
    net = network(norm)
    hold_batch_norms(net)
    x = torch.randn(2, 3, 9, 9)
    expected = net(x)
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16()
    assert net.state_dict()["1.running_var"].dtype == torch.float32
    out = net(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


def test_models_hold_those_of_their_encoders() -> None:
    """Rows are computed alike whatever else is in them, from the first forward pass on."""
    built = make(
        "inline", encoders={"main": {"name": "timm", "model": "test_efficientnet", "weights": "none", "size": 64}}
    )
    statistics = {name: value.clone() for name, value in built.model.encoders.named_buffers()}
    for switch in (lambda: None, built.model.train, built.model.eval, built.model.train):
        switch()
        together = built.model(**inputs(built, CONVERSATIONS[:1] + CONVERSATIONS[4:5])).logits
        alone = built.model(**inputs(built, CONVERSATIONS[4:5])).logits
        torch.testing.assert_close(together[1, -alone.shape[1] :], alone[0], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, statistics[name]) for name, value in built.model.encoders.named_buffers())
