"""Progress bars: on a terminal alone, and only of what takes long."""

from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

PATIENCE_S = 2.0
"""What has ended before gets no bar."""


def bar(work: Iterable[Any] | None = None, shown: bool = True, **options: Any) -> tqdm:
    """tqdm's bar.

    Args:
        work: what to go through; None: it is told of each step by `update`.
        shown: whether this process shows it.
        options: tqdm's.
    """
    return tqdm(work, disable=None if shown else True, dynamic_ncols=True, delay=PATIENCE_S, **options)


def transformers_bars() -> None:
    """From now on those of Transformers, which loads and writes weights, are like ours."""

    def patient(draw: Callable[..., Any], work: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return draw(*work, **{"disable": None, "delay": PATIENCE_S} | options)

    logging.set_tqdm_hook(patient)
