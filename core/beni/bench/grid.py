"""Which combinations of parts a command line asks to compare: an option of a part may take several names."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product

from beni.config import SINGLE_KINDS
from beni.errors import PluginError
from beni.registry import available

Combination = Mapping[str, Sequence[str]]
"""What is chosen of each kind that the command line names; several encoders make one model."""

EVERY = ("connector", "fusion")
"""The kinds that `--all` goes through."""


def combinations(arguments: Sequence[str], every: bool = False) -> tuple[list[Combination], list[str]]:
    """The combinations that arguments name, and the arguments that are left for each of them.

    Args:
        arguments: `--connector mlp perceiver` asks for two models, `--encoder a b` for one with two encoders, and
            `--encoder a --encoder b` again for two.
        every: go through all installed connectors and fusions, where the arguments name none.
    """
    choices: dict[str, list[Sequence[str]]] = {}
    rest: list[str] = []
    at = 0
    while at < len(arguments):
        name, equals, value = arguments[at].partition("=")
        kind = name.removeprefix("--")
        at += 1
        if not name.startswith("--") or kind not in ("encoder", *SINGLE_KINDS):
            rest.append(arguments[at - 1])
            continue
        values = [value] if equals else []
        while at < len(arguments) and not arguments[at].startswith("-"):
            values.append(arguments[at])
            at += 1
        choices.setdefault(kind, [])
        choices[kind] += [values] if kind == "encoder" or not values else [[each] for each in values]
    for kind in EVERY if every else ():
        choices.setdefault(kind, [[name] for name in installed(kind)])
    return [dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())], rest


def spelled(chosen: Combination) -> list[str]:
    """A combination as arguments of `beni train`."""
    return [word for kind, values in chosen.items() for word in (f"--{kind}", *values)]


def installed(kind: str) -> list[str]:
    """What can be chosen of a kind, without what is broken."""
    found = []
    for plugin in available(kind):
        with suppress(PluginError):
            plugin.load()
            found.append(plugin.reference)
    return found
