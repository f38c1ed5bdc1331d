"""Checks annotations while the tests run: jaxtyping's import hook calls `check` on every function of beni.

Functions inside of functions are left to mypy: every call would wrap them anew, which takes three milliseconds.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype


def check(what: Any) -> Any:
    """A function or class of beni that checks its annotations; an int will do for a float.

    Of a sequence one item is looked at, chosen at random. Not of samples: a source reads them when they are asked for,
    and a fault in one of them is for what is tested to find.
    """
    sample = getattr(sys.modules.get("beni.sample"), "Sample", None)  # what comes before it cannot be annotated with it
    unread = FrozenDict({Sequence[sample]: Sequence} if sample else {})
    return beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=unread))(what)


_jaxtyped = jaxtyping.jaxtyped


def _outside_of_functions(*, typechecker: Any) -> Callable[[Any], Any]:
    """What the hook decorates functions and classes with."""
    decorate = _jaxtyped(typechecker=typechecker)
    return lambda what: what if "<locals>" in getattr(what, "__qualname__", "") else decorate(what)


jaxtyping.jaxtyped = _outside_of_functions  # type: ignore[assignment]
