"""What `--help` shows of options: their texts as paragraphs, however their source breaks them into lines."""

import dataclasses
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from beni.cli.describe import texts

OptionsT = TypeVar("OptionsT")


def shown(cls: type[OptionsT]) -> type[OptionsT]:
    """A dataclass with the same options, for `--help` only: tyro keeps the line breaks of the docstrings under fields.

    Args:
        cls: the options; a field may itself be a dataclass, a group of options.
    """
    told = texts(cls)
    hints = get_type_hints(cls, include_extras=True)
    fields: list[Any] = []
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]  # any class, to mypy
        if not each.init:
            continue  # no option
        kind, *marks = get_args(hints[each.name]) if get_origin(hints[each.name]) is Annotated else (hints[each.name],)
        if _is_group(kind):
            kind = shown(kind)
        if each.name in told:
            marks = [tyro.conf.arg(help=told[each.name]), *marks]  # a help that is given already wins
        fields.append((each.name, Annotated[(kind, *marks)] if marks else kind, _default(each, kind)))
    own = {"__doc__": _about(cls), "__post_init__": lambda options: None}  # nothing is computed with it
    frozen: bool = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    made: type[OptionsT] = dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), namespace=own, frozen=frozen, kw_only=True
    )
    return made


def _about(cls: type) -> str:
    """What a class says of itself; nothing, where `dataclass` wrote it."""
    about = "" if (cls.__doc__ or "").startswith(f"{cls.__name__}(") else cls.__doc__ or ""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in about.split("\n\n"))


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _default(each: "dataclasses.Field[Any]", kind: Any) -> Any:
    """A field's default: of a group of options, as one of the classes that are shown."""
    if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
        return dataclasses.field()
    value = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
    return dataclasses.field(default_factory=lambda: _like(kind, value))


def _like(kind: Any, value: Any) -> Any:
    if not (_is_group(kind) and _is_group(type(value))):
        return value
    inner = get_type_hints(kind)
    values = {f.name: _like(inner[f.name], getattr(value, f.name)) for f in dataclasses.fields(kind) if f.init}
    return kind(**values)
