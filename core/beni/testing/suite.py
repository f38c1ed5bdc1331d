"""What a conformance suite is: a class of plain methods, run by pytest or by `beni check`.

A check is a method whose name starts with `test_`. It returns, or raises AssertionError with what the author of the
part has to change, or `SkipTest` with why it does not apply. pytest runs such classes as they are; nothing here needs
it.
"""

import ast
import dataclasses
import inspect
import json
import pickle
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Literal
from unittest import SkipTest

import torch

from beni.config import Part, choose, part_from_dict
from beni.errors import BeniError, ConfigError, place_of
from beni.interfaces import load

UNKNOWN = "no_part_has_an_option_of_this_name"


class Conformance:
    """Checks of every kind of part; subclass the suite of a kind and say which part it is."""

    kind: ClassVar[str]
    part: ClassVar[str | type] = ""
    """The part as the command line names it (`mine`, `mine@package`, `package.module:Class`, `file.py:Class`), or its
    class."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Values of the part's options; small ones make the checks quick."""

    def setup_method(self) -> None:
        """Before each check; pytest calls it too."""
        torch.manual_seed(0)

    @classmethod
    def chosen(cls) -> Part:
        """The part with its options.

        Raises:
            BeniError: it is not installed, broken, or has no such options.
        """
        return _chosen(cls)  # type: ignore[arg-type]  # mypy takes metaclasses for unhashable

    @classmethod
    def refusal(cls) -> str:
        """Why the part refuses, with these options, what it is checked in; empty where it does not."""
        return ""

    def test_options_survive_json(self) -> None:
        config = self.chosen().config
        require(
            dataclasses.is_dataclass(config) and type(config).__dataclass_params__.frozen,  # type: ignore[attr-defined]
            f"{type(config).__name__} must be a frozen dataclass: write @dataclass(frozen=True, slots=True) above it",
        )
        again = part_from_dict(self.kind, json.loads(json.dumps(self.chosen().to_dict()))).config
        require(
            again == config,
            f"options change on their way through config.json: {config} came back as {again}; use numbers, strings, "
            f"booleans and tuples of them",
        )

    def test_options_survive_pickling(self) -> None:
        """Data workers may be started with a pickled copy."""
        config = self.chosen().config
        require(pickle.loads(pickle.dumps(config)) == config, f"{config} is not the same after pickling")

    def test_unknown_options_are_refused(self) -> None:
        try:
            choose(self.kind, reference(self.part), {UNKNOWN: 1})
        except ConfigError:
            return
        raise AssertionError(
            f"{type(self.chosen().config).__name__} accepts an option '{UNKNOWN}': let it be a plain dataclass"
        )

    def test_options_are_documented(self) -> None:
        missing = undocumented(type(self.chosen().config))
        require(not missing, f"write a docstring under {', '.join(missing)}: it is what --help shows")


@lru_cache(maxsize=8)
def _chosen(suite: type[Conformance]) -> Part:
    part = choose(suite.kind, reference(suite.part), suite.options)
    load(suite.kind, part)
    return part


def reference(part: str | type) -> str:
    """How the command line would name a part."""
    if isinstance(part, str):
        return part
    module = part.__module__
    return f"{module if '.' in module else inspect.getfile(part)}:{part.__qualname__}"


def require(condition: bool, message: str) -> None:
    """An assertion that stays one under `python -O`.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)


def undocumented(config: type) -> list[str]:
    """Options without a docstring under them.

    Raises:
        SkipTest: there is no source to look at.
    """
    documented: set[str] = set()
    for cls in config.__mro__:
        if not dataclasses.is_dataclass(cls):
            continue
        try:
            [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError) as error:
            raise SkipTest(f"the source of {cls.__name__} cannot be read") from error
        assert isinstance(definition, ast.ClassDef)
        for statement, following in pairwise(definition.body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                documented.add(statement.target.id)
    return [field.name for field in dataclasses.fields(config) if field.name not in documented]


# ------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a check."""

    check: str
    status: Literal["ok", "failed", "skipped"]
    reason: str = ""
    """One line; empty for a check that holds."""


def checks(suite: type[Conformance]) -> list[str]:
    """Names of a suite's checks, those of all parts first."""
    names: dict[str, None] = {}
    for cls in reversed(suite.__mro__):
        names |= {name: None for name, value in vars(cls).items() if name.startswith("test_") and callable(value)}
    return list(names)


def run(suite: type[Conformance], check: str) -> Outcome:
    """Run one check."""
    instance = suite()
    method: Callable[[], None] = getattr(instance, check)
    name = check.removeprefix("test_").replace("_", " ")
    try:
        instance.setup_method()
        method()
    except SkipTest as reason:
        return Outcome(name, "skipped", str(reason))
    except Exception as error:  # noqa: BLE001  # a part may raise anything; its author is told what, and where
        return Outcome(name, "failed", _told(error))
    return Outcome(name, "ok")


def run_all(suite: type[Conformance]) -> Iterator[Outcome]:
    """Run a suite, check by check."""
    for check in checks(suite):
        yield run(suite, check)


def _told(error: Exception) -> str:
    """An exception in one line; what nobody wrote for a reader is told with its type and place."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if line and isinstance(error, (AssertionError, BeniError)):
        return line
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {line} ({place_of(error)}){notes}"
