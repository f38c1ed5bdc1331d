"""Times are told by hooks, belong to the right name, and leave nothing behind."""

from collections.abc import Iterator
from itertools import count

import pytest
import torch
from torch import nn

from beni.bench.passes import BACKWARD, CONNECT, ENCODE, FORWARD, LLM, OPTIMIZER, timed
from beni.data.batch import pack
from beni.training import stopwatch
from beni.training.stopwatch import Stopwatch
from tests.model.small import CONVERSATIONS, make

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that is a second further whenever somebody looks."""
    seconds = count()
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(seconds)))
    yield


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("parts", ["inline", "sva", "deepstack"])
def test_every_pass_is_timed_once_for_each_row(ticking: None, parts: str) -> None:
    built = make(parts)
    model, optimizer, watch = built.model, torch.optim.SGD(built.model.parameters(), lr=0.1), Stopwatch(CPU)
    before = hooks(model)
    row = pack([[built.composer.compose(sample)] for sample in CONVERSATIONS], built.composer)
    with timed(model, optimizer, watch) as backward_ends:
        for _ in range(2):
            model(packed=row).loss.backward()
        backward_ends()
        optimizer.step()
    assert hooks(model) == before
    model(packed=row)
    taken = watch.read()
    assert taken.keys() == {FORWARD, BACKWARD, OPTIMIZER, ENCODE, CONNECT, LLM}
    # a look at the clock when something begins, and one when it ends
    assert taken[ENCODE] == 2 * len(model.encoders) and taken[CONNECT] == 2 * len(model.connectors())
    assert taken[LLM] == 2 and taken[OPTIMIZER] == 1
    inside = 2 * (len(model.encoders) + len(model.connectors()) + 1)
    assert taken[FORWARD] == 2 * (inside + 1)
    assert taken[BACKWARD] == 2, "a row's ends where the next row's forward pass begins"
    assert watch.read() == {}
