"""Being asked to end: a scheduler sends SIGTERM some time before it kills."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Inside the `with` block SIGTERM ends nothing; the function says whether it has come.

    Outside of the main thread, where Python allows no handlers, SIGTERM ends the process as ever.
    """
    came = threading.Event()

    def note(*_: Any) -> None:
        came.set()

    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
