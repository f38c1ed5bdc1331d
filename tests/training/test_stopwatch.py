"""A stopwatch adds up what it timed, and a GPU is timed by the work there."""

from itertools import count

import pytest
import torch

from beni.training import stopwatch
from beni.training.stopwatch import WAIT, Stopwatch, waited

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a second further whenever somebody looks."""
    seconds = count()
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(seconds)))


def test_what_one_waits_for_is_the_next_item(ticking: None) -> None:
    watch = Stopwatch(CPU)
    items = waited(iter("ab"), watch)
    assert next(items) == "a" and watch.read() == {WAIT: 1.0}
    assert list(items) == ["b"] and watch.read() == {WAIT: 2.0}


def test_what_was_never_started_takes_no_time() -> None:
    watch = Stopwatch(CPU)
    watch.stop("backward")
    assert watch.read() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_work_there_is_timed() -> None:
    device = torch.device("cuda")
    watch = Stopwatch(device)
    x = torch.randn(4096, 4096, device=device)
    watch.start("short")
    x @ x
    watch.stop("short")
    watch.start("long")
    for _ in range(20):
        x @ x
    watch.stop("long")
    taken = watch.read()
    assert 0 < taken["short"] < taken["long"]
