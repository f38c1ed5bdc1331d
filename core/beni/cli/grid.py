"""Grids: an option may take several values, and every combination of them is one command line of `beni train`.

--connector mlp perceiver --fusion inline xattn --lr 1e-4 3e-4        eight combinations
--encoder a=tiny b=timm:x --encoder tiny                              two: an option that is a list is repeated
--compile --no-compile                                                two
--connector mlp perceiver --connector.num-latents 16 64               three: mlp has no such option
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any, get_origin, get_type_hints

from beni.cli.options import encoders_of
from beni.config import (
    DEFAULT_PARTS,
    OPTION_GROUPS,
    SINGLE_KINDS,
    Part,
    PartConfig,
    choose,
    held_parts,
    part_from_dict,
    read_config_file,
)
from beni.errors import ConfigError, PluginError
from beni.registry import available

KINDS = ("encoder", *SINGLE_KINDS)
EVERY = ("connector", "fusion")
"""The kinds that `--all` goes through."""
SWEEP = "sweep"
"""Table of a configuration file that holds options with lists of values."""
LISTS = (tuple, list, Mapping)
"""Types of options that take several values at once."""
VALUE = re.compile(r"[^-]|-\.?\d|$")
"""How a word begins that is a value and no option."""

Words = tuple[str, ...]
"""An option with its values, as it is typed."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One command line."""

    words: Words
    """All of it."""
    varied: Mapping[str, str]
    """Options in which command lines of the grid differ, and what they are here; without those that do not apply."""

    @property
    def name(self) -> str:
        """What it is called, by what is varied."""
        return " ".join(f"{option}={value}" for option, value in self.varied.items())


def combinations(arguments: Sequence[str], every: bool = False) -> list[Combination]:
    """All combinations of the values that options are given.

    Options of a part apply where that part is chosen: those that it does not have are left out.

    Args:
        arguments: as for `beni train`, with several values. The file behind `--config` may have a table `sweep` of more
            options with lists of values; what the arguments name replaces them.
        every: go through all installed connectors and fusions, where none are named.

    Raises:
        BeniError: a part that does not exist, a file that cannot be read, or a table `sweep` that is none.
    """
    given, stray = _given(arguments)
    files = [file for words in given.get("config", ()) for file in words[1:]]
    if len(files) > 1:
        raise ConfigError(f"--config takes one file, not {', '.join(files)}: vary the options in which they differ")
    tables = read_config_file(files[0]) if files else {}
    if every:
        given |= {kind: [(f"--{kind}", name) for name in installed(kind)] for kind in EVERY if kind not in given}
    given = {option: words for option, words in _filed(tables).items() if option not in given} | given
    given = _switches(given, tables)
    whole = _Grid(given, tables)
    axes = {option: whole.choices(option) for option in given}
    varied = [option for option, choices in axes.items() if len(choices) > 1]
    found: dict[Words, Combination] = {}
    for chosen in product(*axes.values()):
        one = {option: [words] for option, words in zip(axes, chosen, strict=True)}
        here = _Grid(one, tables)
        kept = {option: words for option, [words] in one.items() if not whole.hints(option) or here.hints(option)}
        line = (*stray, *(word for words in kept.values() for word in words))
        shown = {option: _shown(kept[option]) for option in varied if option in kept}
        found.setdefault(line, Combination(line, shown))
    return list(found.values())


def installed(kind: str) -> list[str]:
    """What can be chosen of a kind, without what is broken."""
    found = []
    for plugin in available(kind):
        with suppress(PluginError):
            plugin.load()
            found.append(plugin.reference)
    return found


@dataclass(frozen=True, slots=True)
class _Grid:
    """What is given for each option, and the parts whose options these may be."""

    given: Mapping[str, Sequence[Words]]
    """As it is typed, once for each time that the option occurs."""
    tables: Mapping[str, Any]

    def choices(self, option: str) -> list[Words]:
        """What an option may be, each as it is typed."""
        hints = self.hints(option)
        if not hints or any(get_origin(hint) in LISTS for hint in hints):
            return list(dict.fromkeys(self.given[option]))
        chosen = [
            (words[0], value) if value is not None else words[:1]
            for words in self.given[option]
            for value in words[1:] or [None]
        ]
        return list(dict.fromkeys(chosen))

    def hints(self, option: str) -> list[Any]:
        """Types of an option, one for each chosen part that has it; none if there is no such option."""
        kind, *path = option.replace("-", "_").split(".")
        if path and kind == "encoder":
            found = []
            for chosen in self._encoders():
                if list(chosen) == ["main"]:
                    found += self._of(chosen["main"].config, kind, path)
                elif path[0] in chosen and len(path) > 1:  # --encoder.KEY.OPTION
                    found += self._of(chosen[path[0]].config, f"{kind}.{path[0]}", path[1:])
            return found
        if path and kind in KINDS:
            return [hint for part in self._parts(kind) for hint in self._of(part.config, kind, path)]
        if kind in KINDS:
            return [tuple[str, ...] if kind == "encoder" else str]
        if kind == "config":
            return [str]
        return [get_type_hints(group)[kind] for group in OPTION_GROUPS.values() if _has(group, kind)]

    def _parts(self, kind: str) -> list[Part]:
        """What is chosen of a kind, by the arguments, else by the file, else by default."""
        if kind in self.given:
            return [choose(kind, reference) for words in self.given[kind] for reference in words[1:]]
        return [part_from_dict(kind, self.tables.get(kind, {"name": DEFAULT_PARTS[kind]}))]

    def _encoders(self) -> list[Mapping[str, Part]]:
        """The sets of encoders that are chosen, by their keys."""
        if "encoder" in self.given:
            return [encoders_of(words[1:]) for words in self.given["encoder"] if words[1:]]
        filed = self.tables.get("encoders", {"main": {"name": DEFAULT_PARTS["encoder"]}})
        return [{key: part_from_dict("encoder", table) for key, table in filed.items()}]

    def _of(self, config: PartConfig, option: str, path: Sequence[str]) -> list[Any]:
        """Types of an option of a part, or of a part that it holds."""
        name, *deeper = path
        inside = held_parts(type(config))
        if not _has(type(config), name) or (deeper and name not in inside):
            return []
        if not deeper:
            return [str if name in inside else get_type_hints(type(config))[name]]
        inner = f"{option}.{name}".replace("_", "-")
        named = [reference for words in self.given.get(inner, ()) for reference in words[1:]]
        parts = [choose(inside[name], reference) for reference in named] or [getattr(config, name)]
        return [hint for part in parts for hint in self._of(part.config, inner, deeper)]


def _given(arguments: Sequence[str]) -> tuple[dict[str, list[Words]], Words]:
    """What is given for each option, and the words that belong to none."""
    given: dict[str, list[Words]] = {}
    stray: list[str] = []
    at = 0
    while at < len(arguments):
        option, equals, value = arguments[at].partition("=")
        at += 1
        if not option.startswith("--") or option == "--help":
            stray.append(arguments[at - 1])
            continue
        values = [value] if equals else []
        while at < len(arguments) and VALUE.match(arguments[at]):
            values.append(arguments[at])
            at += 1
        given.setdefault(option.removeprefix("--").replace("_", "-"), []).append((option, *values))
    return given, tuple(stray)


def _filed(tables: Mapping[str, Any]) -> dict[str, list[Words]]:
    """What a file's table `sweep` gives: lists of values by option, written without dashes in front."""
    table = tables.get(SWEEP, {})
    if not isinstance(table, Mapping):
        raise ConfigError("sweep is a table: [sweep] with lists of values, as in connector = ['mlp', 'perceiver']")
    found: dict[str, list[Words]] = {}
    for name, values in table.items():
        option = f"--{name.replace('_', '-')}"
        if not isinstance(values, list) or not values:
            raise ConfigError(f"[sweep] gives {name} {values!r}: a list of values is needed, as in [1, 2]")
        found[option.removeprefix("--")] = [_typed(option, value) for value in values]
    return found


def _typed(option: str, value: Any) -> Words:
    if isinstance(value, bool):
        *before, last = option.removeprefix("--").split(".")
        return (option if value else f"--{'.'.join([*before, f'no-{last}'])}",)
    return (option, *(str(each) for each in (value if isinstance(value, list) else [value])))


def _switches(given: Mapping[str, list[Words]], tables: Mapping[str, Any]) -> dict[str, list[Words]]:
    """Options with those that turn a switch off under the name of what turns it on."""
    grid = _Grid(given, tables)
    found: dict[str, list[Words]] = {}
    for option, words in given.items():
        positive = _positive(option)
        found.setdefault(positive if bool in grid.hints(positive) else option, []).extend(words)
    return found


def _positive(option: str) -> str:
    """`view.overview` for `view.no-overview`, and nothing for what turns nothing off."""
    *before, last = option.split(".")
    return ".".join([*before, last.removeprefix("no-")]) if last.startswith("no-") else ""


def _shown(words: Words) -> str:
    if len(words) > 1:
        return " + ".join(words[1:])
    return "off" if _positive(words[0].removeprefix("--")) else "on"


def _has(cls: type, name: str) -> bool:
    return name in {field.name for field in dataclasses.fields(cls)}
