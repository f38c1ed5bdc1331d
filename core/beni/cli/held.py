"""Options of parts that hold parts: `--connector.inner NAME` says which, `--connector.inner.OPTION` how it is.

In place of such a part's `Config`, tyro sees a dataclass with the name of the part that is held, and with its options.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro

from beni.config import Part, choose, held_parts
from beni.errors import ConfigError
from beni.registry import available

Field = tuple[str, Any, Any]
"""Name, type and default, as `dataclasses.make_dataclass` takes them."""


def given(options: Sequence[str], arguments: Sequence[str], lists: Sequence[str] = ()) -> dict[str, Any]:
    """The values of these options on the command line, ignoring every other option.

    Args:
        options: their names without the dashes.
        arguments: what the user typed.
        lists: those of them that take several values.

    Raises:
        ConfigError: an option without a value.
    """
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in options:
        spellings = dict.fromkeys((f"--{option}", f"--{option.replace('_', '-')}"))
        reader.add_argument(*spellings, dest=option, nargs="+" if option in lists else None)
    try:
        found, _ = reader.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").rpartition("/")[2]
        raise ConfigError(f"{name} needs a value (--help lists all options)") from error
    return {name: value for name, value in vars(found).items() if value is not None}


def choose_held(part: Part, option: str, arguments: Sequence[str]) -> Part:
    """A part, holding the parts that the command line names; `option` is how the part itself is called there."""
    held = {}
    for name, kind in held_parts(type(part.config)).items():
        inner = f"{option}.{name}"
        chosen = given([inner], arguments)
        held[name] = choose_held(
            choose(kind, chosen[inner]) if chosen else getattr(part.config, name), inner, arguments
        )
    return Part(part.plugin, dataclasses.replace(part.config, **held)) if held else part


def option_field(name: str, part: Part) -> Field:
    """A group of options: the part's, with its present values as defaults."""
    config, kinds = part.config, held_parts(type(part.config))
    if not kinds:
        return name, type(config), dataclasses.field(default=config)
    names: list[Field] = [
        (inner, Annotated[str, tyro.conf.arg(help=offered(kind, f"A {kind}"))], getattr(config, inner).plugin.name)
        for inner, kind in kinds.items()
    ]
    selectors = dataclasses.make_dataclass("Held", names, frozen=True)
    fields: list[Field] = [option_field(inner, getattr(config, inner)) for inner in kinds]
    fields.append(("_held", Annotated[selectors, tyro.conf.arg(name="")], dataclasses.field(default=selectors())))
    seen = dataclasses.make_dataclass(  # derived, so that tyro finds the documentation of the part's options
        type(config).__name__, fields, bases=(type(config),), namespace={"__post_init__": _unchecked}, frozen=True
    )
    plain = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in kinds}
    return name, seen, dataclasses.field(default=seen(**plain))


def with_options(part: Part, parsed: Any) -> Part:
    """A part with what was parsed for its `option_field`."""
    kinds = held_parts(type(part.config))
    if not kinds:
        return Part(part.plugin, parsed)
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(part.config)}
    held = {name: with_options(getattr(part.config, name), values[name]) for name in kinds}
    return Part(part.plugin, type(part.config)(**values | held))


def names(part: Part, option: str) -> Iterator[tuple[str, str]]:
    """How a part and those it holds are called on the command line, and which they are."""
    yield option, part.plugin.name
    for name in held_parts(type(part.config)):
        yield from names(getattr(part.config, name), f"{option}.{name}".replace("_", "-"))


def offered(kind: str, what: str) -> str:
    """Help of an option that names a part: what the part does, and which are installed."""
    return f"{what}: {', '.join(sorted({plugin.name for plugin in available(kind)}))}."


def _unchecked(options: Any) -> None:
    """What is parsed is checked when it becomes the part's own `Config`."""
