"""A part in words: what it says of itself in its source, and its options."""

import ast
import dataclasses
import inspect
import textwrap
from itertools import pairwise
from typing import Any, NamedTuple, get_args, get_type_hints

from beni.config import Part, held_parts


class Option(NamedTuple):
    """One field of a part's configuration."""

    name: str
    """As on the command line, without the part in front."""
    type: str
    default: str
    text: str
    """What it does; empty where the source does not say."""


def about(part: type) -> str:
    """What a part says of itself: the docstring of its file, but for the legend of shapes, and its own."""
    module = inspect.getmodule(part)
    texts = [inspect.cleandoc(text) for text in ((module and module.__doc__) or "", part.__doc__ or "") if text]
    paragraphs = [paragraph for text in texts for paragraph in text.split("\n\n")]
    return "\n\n".join(paragraph for paragraph in paragraphs if not paragraph.startswith("Shapes:"))


def options(config: type) -> list[Option]:
    """The fields of a dataclass, in order, those of its base classes first."""
    hints, kinds, told = get_type_hints(config), held_parts(config), texts(config)
    return [
        Option(
            field.name.replace("_", "-"),
            kinds.get(field.name) or _type(hints[field.name]),
            _default(field),
            told.get(field.name, ""),
        )
        for field in dataclasses.fields(config)
    ]


def _type(hint: Any) -> str:
    if choices := [each for each in get_args(hint) if isinstance(each, str)]:
        return " | ".join(choices)
    return str(getattr(hint, "__name__", hint)) if not get_args(hint) else str(hint).replace("typing.", "")


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is dataclasses.MISSING:
        return "required"
    value = field.default_factory()
    return repr(value.plugin.name if isinstance(value, Part) else value)


def texts(config: type) -> dict[str, str]:
    """The strings that stand behind fields in the source."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except OSError:  # made at run time
            continue
        [definition] = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for field, behind in pairwise(definition.body):
            match field, behind:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
