"""What a run tells while it goes on: lines of metrics.jsonl, a progress bar."""

import json
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from beni.progress import bar
from beni.training.tracking import Tracker


class Metrics:
    """Writes metrics.jsonl and drives the progress bar; does nothing on other processes than the main one.

    Lines for which there is no room on the disk are kept, and written when there is. A tracker is told all of them.
    """

    def __init__(self, folder: Path, steps: int, done: int, is_main: bool, tracker: Tracker) -> None:
        self.tracker = tracker
        self.file = (folder / "metrics.jsonl").open("ab", buffering=0) if is_main else None
        self.unwritten = b""
        self.bar = bar(total=steps, initial=done, unit="step", shown=is_main)
        self.started = time.perf_counter()

    def log(self, step: int, **values: Any) -> None:
        """Append a line."""
        if self.file is not None:
            line = {"step": step, "time_s": round(time.perf_counter() - self.started, 3), **values}
            had_room = not self.unwritten
            self.unwritten += json.dumps(line).encode() + b"\n"
            if (why := self._write()) and had_room:
                self.tell(f"warning: {self.file.name} cannot be written: {why}; its lines are kept until there is room")
            self.tracker.log(line)

    def tell(self, message: str) -> None:
        """Print a line beside the progress bar."""
        if self.file is not None:
            with _unread():
                if self.bar.last_print_t > self.bar.start_t:
                    tqdm.write(message, file=sys.stderr)
                else:  # it was not drawn yet, and tqdm would draw it
                    print(message, file=sys.stderr, flush=True)

    def advance(self, **shown: str) -> None:
        """One step done."""
        self.bar.set_postfix(shown, refresh=False)
        with _unread():
            self.bar.update()

    def close(self) -> None:
        with _unread():
            self.bar.close()
        if self.file is not None:
            if self.unwritten and (why := self._write()):
                self.tell(f"warning: {self.file.name} lacks its last lines: {why}")
            self.file.close()

    def _write(self) -> str:
        """Write what can be written; why not all of it, or nothing."""
        assert self.file is not None
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[self.file.write(self.unwritten) :]
        except OSError as error:
            return error.strerror or str(error)
        return ""


def _unread() -> AbstractContextManager[None]:
    """Whoever read our output may be gone, as `tee` is behind Ctrl-C: a run trains on, and saves."""
    return suppress(BrokenPipeError)


def trim(path: Path, step: int) -> None:
    """Drop lines behind a step, so that a continued run does not log steps twice."""
    if path.is_file():
        draft = path.with_name(f".{path.name}")
        draft.write_text("".join(json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step))
        draft.replace(path)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """All lines of a metrics file; without its last one, if there was no room for all of it."""
    if not path.is_file():
        return []
    *whole, _ = path.read_text().split("\n")
    return [json.loads(line) for line in whole]
