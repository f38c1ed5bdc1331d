"""Running classes of somebody else on parts that they may never have seen."""

from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import TemplateError

from beni.errors import ExportError, first_line


@contextmanager
def foreign(name: str, doing: str) -> Iterator[None]:
    """Inside, only a class of Transformers' runs, and what it stumbles over is about the parts that it was given.

    Args:
        name: the class.
        doing: what it is to do with them, as in "hold".

    Raises:
        ExportError: it cannot; holds its error's kind and first line.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, TemplateError) as error:
        raise ExportError(
            f"{name} cannot {doing} these parts: {type(error).__name__}: {first_line(error)[:200]}"
        ) from error
