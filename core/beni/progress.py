"""Progress bars: of what takes long; moving on a terminal, a line now and then in a log."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

PATIENCE_S = 2.0
"""What has ended before gets no bar on a terminal."""
LOGGED_S = 30.0
"""In a log a bar is drawn this often."""


def bar(work: Iterable[Any] | None = None, shown: bool = True, **options: Any) -> tqdm:
    """tqdm's bar.

    Args:
        work: what to go through; None: it is told of each step by `update`.
        shown: whether this process shows it.
        options: tqdm's.
    """
    return tqdm(work, disable=not shown, dynamic_ncols=True, **_pace(), **options)


def transformers_bars() -> None:
    """From now on those of Transformers, which loads and writes weights, are like ours."""

    def patient(draw: Callable[..., Any], work: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return draw(*work, **_pace() | options)

    logging.set_tqdm_hook(patient)


def _pace() -> dict[str, float]:
    """tqdm's options that say when a bar is drawn."""
    if sys.stderr.isatty():
        return {"delay": PATIENCE_S}
    return {"delay": LOGGED_S, "mininterval": LOGGED_S, "maxinterval": LOGGED_S}
