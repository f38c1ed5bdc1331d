"""Who does not answer is told by the notes that processes leave; here, several of them in one process."""

import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from beni.errors import LostRank
from beni.peers import LOOKS, Peers

TIMEOUT = 1.0


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Peers]]:
    store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, timeout=timedelta(seconds=5))
    peers = [Peers(store, rank, 3, TIMEOUT, "rank 0 at 127.0.0.1:1") for rank in range(3)]

    def sleep(seconds: float) -> None:
        """Long enough for the living to be heard, however busy the machine is."""
        counts = [each.count for each in peers]
        time.sleep(seconds)
        if seconds < TIMEOUT / LOOKS:
            return
        while any(not e._ended.is_set() and e.count == count for e, count in zip(peers, counts, strict=True)):
            time.sleep(0.01)

    monkeypatch.setattr("beni.peers.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    yield peers
    for each in peers:
        each._ended.set()
        each._heart.join()


def silence(peers: Peers) -> None:
    """As if its process were frozen."""
    peers._ended.set()
    peers._heart.join()


def together(peers: list[Peers]) -> list[BaseException | None]:
    """Have all of them meet; what each raises."""
    raised: list[BaseException | None] = [None] * len(peers)

    def meet(number: int) -> None:
        try:
            peers[number].meet()
        except LostRank as error:
            raised[number] = error

    threads = [threading.Thread(target=meet, args=(number,)) for number in range(len(peers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_all_meet_as_often_as_they_like(three: list[Peers]) -> None:
    for _ in range(3):
        assert together(three) == [None] * 3


def test_a_living_one_is_waited_for_longer_than_the_time_out(three: list[Peers]) -> None:
    late = threading.Timer(3 * TIMEOUT, three[2].meet)
    late.start()
    assert together(three[:2]) == [None] * 2
    late.join()


def test_a_silent_one_is_waited_for_no_longer_and_named(three: list[Peers]) -> None:
    three[1].doing = "saving the model"
    three[1]._write()
    silence(three[1])
    for error in together([three[0], three[2]]):
        assert re.match(
            rf"rank 1 \(.*, process {os.getpid()}; last seen saving the model\) does not answer", str(error)
        )
    assert "rank 1 (" in three[0].missing() and "rank 2" not in three[0].missing()


def test_nobody_is_blamed_without_a_reason(three: list[Peers]) -> None:
    assert three[0].missing() == "" and three[0].lost(waited=0) is None


def test_one_that_has_failed_says_why_to_those_who_wait(three: list[Peers]) -> None:
    three[1].leave("failed", "no such image")
    for error in together([three[0], three[2]]):
        assert "rank 1 (" in str(error) and str(error).endswith("has ended: no such image")


def test_the_silent_are_to_blame_and_not_who_left_because_of_them(three: list[Peers]) -> None:
    silence(three[1])
    three[2].leave("bereft", "rank 1 does not answer")
    said = three[0].missing()
    assert said.startswith("rank 1 (") and "rank 2" not in said


def test_who_is_behind_is_named_when_all_are_alive(three: list[Peers]) -> None:
    for each, doing in zip(three, ("in step 3", "loading the rows of step 3", "in step 3"), strict=True):
        each.doing = doing
    said = str(three[0].lost(waited=TIMEOUT))
    assert re.match(r"in step 3: waited 1 s for rank 1 \([^()]*loading the rows of step 3\), alive", said)
    assert "--timeout" in said


def test_a_store_that_is_gone_is_told_as_such(three: list[Peers], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise dist.DistNetworkError("Connection was likely closed")

    monkeypatch.setattr(three[2], "_store", type("Store", (), {"multi_get": gone, "add": gone, "set": gone})())
    with pytest.raises(LostRank, match=r"rank 0 at 127\.0\.0\.1:1, through which .* has ended"):
        three[2].meet()
    assert "through which" in str(three[2].lost(waited=0))


def test_a_store_that_does_not_answer_holds_nobody_up(three: list[Peers], monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(
        three[2], "_store", type("Store", (), {"multi_get": lambda *_: released.wait(), "set": lambda *_: None})()
    )
    with pytest.raises(LostRank, match="does not answer"):
        three[2].missing()
    released.set()
