"""Being asked to end: by SIGTERM, which a scheduler sends some time before it kills, or by Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def stop_noted(told: bool = True) -> Iterator[Callable[[], bool]]:
    """Inside the `with` block SIGTERM and the first Ctrl-C end nothing; the function says whether one has come.

    A second Ctrl-C interrupts as ever. So do both outside of the main thread, where Python allows no handlers; what was
    to be ignored before is ignored.

    Args:
        told: whether the first Ctrl-C is answered by a line.
    """
    came = threading.Event()

    def note(number: int, _: Any) -> None:
        came.set()
        if number != signal.SIGINT:
            return
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        if told:
            with suppress(BrokenPipeError):  # the same Ctrl-C has ended whoever reads, as in `| tee log`
                print("\nstopping behind this step, to save it; Ctrl-C once more ends at once", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    found = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    before = {each: handler for each, handler in found.items() if handler not in (None, signal.SIG_IGN)}
    for each in before:
        signal.signal(each, note)
    try:
        yield came.is_set
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
