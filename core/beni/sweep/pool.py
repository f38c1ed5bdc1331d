"""Runs of a sweep side by side, each in a process with threads, or a GPU, of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from beni.config import RunConfig
from beni.errors import Stopped

TAIL = 20_000
"""Bytes at the end of a log in which the reason of a failure is looked for."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    failed: str
    """Why it has no result; empty if it has."""
    refused: bool = False
    """Whether that is how it was asked for (parts that do not go together), and not an accident."""


@dataclass(slots=True)
class Pool:
    """Runs so many at a time. Which run gets which GPU does not matter."""

    jobs: int
    gpus: Sequence[str] = ()
    """One is given to each run, where there are any."""
    running: set["subprocess.Popen[str]"] = field(default_factory=set)
    stopping: bool = False
    """Whether no process is started any more."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Of the two above."""

    def run(self, configs: Sequence[RunConfig], ended: Callable[[RunConfig, Ended], None]) -> None:
        """Train all of them that have no result yet; a failure keeps none of the others from running.

        Args:
            configs: each with a folder of its own.
            ended: told of each when it has ended, in this thread.

        Raises:
            Stopped: SIGTERM or Ctrl-C came, and the runs have saved what they had.
        """
        free: queue.Queue[str] = queue.Queue()
        for number in range(self.jobs):
            free.put(self.gpus[number % len(self.gpus)] if self.gpus else "")
        with _sigterm_stops(), ThreadPoolExecutor(self.jobs) as threads:
            try:
                waiting = {threads.submit(self._one, config, free): config for config in configs}
                for future in as_completed(waiting):
                    ended(waiting[future], future.result())
            except KeyboardInterrupt as error:
                self._stop(threads)
                raise Stopped("stopped; the runs saved what they had, and the same command goes on") from error
            except BaseException:
                self._stop(threads)
                raise

    def _stop(self, threads: ThreadPoolExecutor) -> None:
        """Ask all runs to save what they have, and wait for it; when asked once more, kill them."""
        with self.lock:
            self.stopping = True
            asked = list(self.running)
        threads.shutdown(wait=False, cancel_futures=True)
        for process in asked:
            process.terminate()
        try:
            threads.shutdown(wait=True)
        except BaseException:
            for process in asked:
                process.kill()
            raise

    def _one(self, config: RunConfig, free: "queue.Queue[str]") -> Ended:
        folder = Path(config.run.out)
        if (folder / "result.json").is_file():
            return Ended("")
        log = folder / "log.txt"
        before = log.stat().st_size if log.is_file() else 0
        gpu = free.get()
        try:
            code = self._process(config, folder, gpu)
        except OSError as error:  # no room for its log, no memory for its process
            return Ended(f"it cannot be started in {folder}: {error.strerror or error}")
        finally:
            free.put(gpu)
        if code == 0 and (folder / "result.json").is_file():
            return Ended("")
        return Ended(_why(log, before, code), refused=code == 2)

    def _process(self, config: RunConfig, folder: Path, gpu: str) -> int:
        """The exit code of the run's process."""
        folder.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        environment = {"OMP_NUM_THREADS": threads, **os.environ} | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
        command = [sys.executable, "-m", "beni.sweep.child"]
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            with self.lock:
                if self.stopping:
                    return os.EX_TEMPFAIL
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    text=True,
                    env=environment,
                    start_new_session=True,  # an interrupt from the keyboard is for us, who ask it to save
                )
                self.running.add(process)
            try:
                assert process.stdin is not None
                process.stdin.write(json.dumps(config.to_dict()) + "\n")
                process.stdin.flush()
                return process.wait()
            except BrokenPipeError:
                return process.wait()
            finally:
                with self.lock:
                    self.running.discard(process)


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Inside, SIGTERM raises `Stopped`."""

    def stop(number: int, frame: object) -> None:
        raise Stopped("stopped; the runs saved what they had, and the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _why(log: Path, before: int, code: int) -> str:
    """The reason that a run gave behind what was in its log before: its error, or else its last word."""
    if code == -signal.SIGKILL:
        return f"it was killed; often memory has run out ({log})"
    text = log.read_bytes()[before:][-TAIL:].decode("utf-8", "replace") if log.is_file() else ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return told[-1] if told else f"{lines[-1] if lines else 'it said nothing'} (exit code {code}; {log})"
