"""The other processes of a run: what each was last seen doing, and which of them does not answer.

Every process leaves a note in the group's store once a second, from a thread of its own: what it does, and a count that
goes up. A count that stands still is that of a process that was killed or frozen, or that cannot be reached; clocks of
two machines are never compared. Notes are read when something has failed, and while somebody is waited for.

The store may die or freeze like everything else, so no call to it is waited for longer than a limit.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

import torch.distributed as dist

from beni.errors import LostRank

T = TypeVar("T")

BEAT_S = 1.0
"""Between two notes of a process."""
SILENT_BEATS = 4
"""A note that stays the same for so many beats is that of a process which does not answer."""
LOOKS = 10
"""How often notes are read in the time after which a silent process is given up."""
FIRST_PAUSE_S, LONGER = 0.001, 1.2
"""Between the first two looks at whether everybody has come, and by how much each pause is longer than the last."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a process tells the others."""

    count: int
    host: str
    pid: int
    doing: str
    left: Literal["", "failed", "bereft"] = ""
    """Why it has gone: something went wrong in it, or it had lost another one."""
    why: str = ""


class Peers:
    """This process among the others, for as long as they work together.

    Args:
        store: of the group that they form; a connection of its own is made to it.
        rank, world: which process this is, of how many.
        timeout: seconds after which a silent process is given up.
        holder: who keeps the store, for messages.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, timeout: float, holder: str) -> None:
        self.rank, self.world, self.timeout, self.holder = rank, world, timeout, holder
        self.doing = "starting"
        """What this process does; a note of it is left with the next beat."""
        self.beat = min(BEAT_S, timeout / LOOKS)
        self.count = 0
        self._served = store  # rank 0's may be the server itself, and the group may end before us
        self._store = dist.PrefixStore("beni", store.clone())
        self._keys = [f"note/{number}" for number in range(world)]
        self._meetings = 0
        self._ended = threading.Event()
        self._write()
        self._heart = threading.Thread(target=self._keep_writing, daemon=True)
        self._heart.start()

    def meet(self) -> None:
        """Wait until everybody has come here; however long that takes, as long as they are alive.

        Raises:
            LostRank: somebody has failed, or been silent for the time-out.
        """
        self._meetings += 1
        key = f"meeting/{self._meetings}"
        if self._ask(lambda: self._store.add(key, 1)) == self.world:
            self._ask(lambda: self._store.set(f"{key}/all", ""))
        heard: dict[int, tuple[int, float]] = {}
        looked, pause = time.monotonic(), FIRST_PAUSE_S
        while not self._ask(lambda: self._store.check([f"{key}/all"])):
            time.sleep(pause)
            pause = min(pause * LONGER, self.beat)
            now = time.monotonic()
            if now - looked < self.timeout / LOOKS:
                continue
            looked, notes = now, self._notes()
            for rank, note in notes.items():
                if heard.get(rank, (-1, 0.0))[0] != note.count:
                    heard[rank] = note.count, now
            silent = [rank for rank, (_, since) in heard.items() if now - since >= self.timeout]
            if blame := self._blame(notes, silent):
                raise LostRank(blame)

    def missing(self) -> str:
        """Who does not answer or has failed, and what to do, in one line; empty if nobody. Takes a few seconds."""
        before = self._notes()
        time.sleep(SILENT_BEATS * self.beat)
        after = self._notes()
        return self._blame(after, [rank for rank, note in after.items() if note.count == before[rank].count])

    def lost(self, waited: float) -> LostRank | None:
        """What to raise when waiting for the others has failed after so many seconds; None if they are not to blame."""
        try:
            if blame := self.missing():
                return LostRank(blame)
            behind = {rank: note for rank, note in self._notes().items() if note.doing != self.doing}
        except LostRank as error:
            return error
        if waited < self.timeout:
            return None
        who = f"for {_names(behind)}, alive all the while" if behind else "though all processes are alive"
        return LostRank(
            f"{self.doing}: waited {self.timeout:g} s {who}: look there for what takes so long (a slow disk or image "
            f"server?), or wait longer with --timeout; --resume auto goes on from the newest checkpoint"
        )

    def leave(self, left: Literal["", "failed", "bereft"] = "", why: str = "") -> None:
        """Say why this process goes, if it does so before the others, and be silent from here on.

        Rank 0, which may hold the store, goes last when all go for the same reason; it does not wait long for those who
        have not noticed.
        """
        self._ended.set()
        self._heart.join(SILENT_BEATS * self.beat)
        try:
            if left:
                self._ask(lambda: self._write(left, why), SILENT_BEATS)
            gone = self._ask(lambda: self._store.add("gone", 1), SILENT_BEATS)
            until = time.monotonic() + SILENT_BEATS * self.beat
            while self.rank == 0 and gone < self.world and time.monotonic() < until:
                time.sleep(self.beat / 20)
                gone = self._ask(lambda: self._store.add("gone", 0), SILENT_BEATS)
        except LostRank:
            pass  # whoever held the store is gone: nobody is left to be told

    def _keep_writing(self) -> None:
        while not self._ended.wait(self.beat):
            try:
                self._write()
            except RuntimeError:  # the store is gone; whoever waits for somebody finds out
                return

    def _write(self, left: Literal["", "failed", "bereft"] = "", why: str = "") -> None:
        self.count += 1
        note = Note(self.count, socket.gethostname(), os.getpid(), self.doing, left, why)
        self._store.set(self._keys[self.rank], json.dumps(asdict(note)))

    def _notes(self) -> dict[int, Note]:
        """What each of the others has told last."""
        texts = self._ask(lambda: self._store.multi_get(self._keys), SILENT_BEATS)
        return {rank: Note(**json.loads(text)) for rank, text in enumerate(texts) if rank != self.rank}

    def _blame(self, notes: dict[int, Note], unchanged: list[int]) -> str:
        silent = {rank: notes[rank] for rank in unchanged if not notes[rank].left}
        if silent:
            return (
                f"{_names(silent)} {'do' if len(silent) > 1 else 'does'} not answer: killed (out of memory?), frozen, "
                f"or its machine or network is gone; see to that, and --resume auto goes on from the newest checkpoint"
            )
        for left in ("failed", "bereft"):
            gone = {rank: note for rank, note in notes.items() if note.left == left}
            for rank, note in gone.items():
                return note.why if left == "bereft" else f"{_names({rank: note})} has ended: {note.why}"
        return ""

    def _ask(self, call: Callable[[], T], beats: float | None = None) -> T:
        """What a call to the store returns.

        Raises:
            LostRank: it did not in time, or the store is gone.
        """
        limit = self.timeout if beats is None else beats * self.beat
        answer: list[T] = []
        thread = threading.Thread(target=_keep_answer, args=(call, answer), daemon=True)
        thread.start()
        thread.join(limit)
        if not answer:
            what = "does not answer" if thread.is_alive() else "has ended"
            raise LostRank(
                f"{self.holder}, through which the processes find each other, {what}: its own message says why, or it "
                f"was killed or frozen; --resume auto goes on from the newest checkpoint"
            )
        return answer[0]


def _keep_answer(call: Callable[[], T], answer: list[T]) -> None:
    try:
        answer.append(call())
    except RuntimeError:  # told by there being no answer
        return


def _names(notes: dict[int, Note]) -> str:
    """`rank 1 (host, process 4711; last seen in step 18)`, and so on."""
    return ", ".join(
        f"rank {rank} ({note.host}, process {note.pid}; last seen {note.doing})" for rank, note in notes.items()
    )
