"""Checks annotations while the tests run: jaxtyping's import hook calls `check` on every function of beni.

Functions inside of functions are left to mypy: every call would wrap them anew, which takes three milliseconds.
"""

from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float

_jaxtyped = jaxtyping.jaxtyped


def _outside_of_functions(*, typechecker: Any) -> Callable[[Any], Any]:
    """What the hook decorates functions and classes with."""
    decorate = _jaxtyped(typechecker=typechecker)
    return lambda what: what if "<locals>" in getattr(what, "__qualname__", "") else decorate(what)


jaxtyping.jaxtyped = _outside_of_functions  # type: ignore[assignment]
