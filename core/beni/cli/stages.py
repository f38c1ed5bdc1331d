"""A configuration file with several stages: tables that each of them changes."""

import difflib
from collections.abc import Mapping
from typing import Any

from beni.config import OPTION_GROUPS, SINGLE_KINDS
from beni.errors import ConfigError

Tables = dict[str, Any]


def split(tables: Mapping[str, Any], file: str) -> dict[str, Tables]:
    """The tables of each stage by its name, in order: those of the file, and over them the stage's own.

    A part's table is merged with the file's if both mean the same part, and replaces it otherwise. A file without
    [[stages]] is one stage without a name.

    Raises:
        ConfigError: a stage without a name, with one that another has, or with one that cannot be a folder's; a start
            that would be that of every stage, or a folder that a stage cannot have.
    """
    base = {name: table for name, table in tables.items() if name != "stages"}
    stages = tables.get("stages")
    if stages is None:
        return {"": base}
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, Mapping) for stage in stages):
        raise ConfigError(f"{file}: stages are tables in a list, each [[stages]] with a name")
    if "init" in _table(base, "optim"):
        raise ConfigError(f"{file}: init is where the first stage starts: put it into its [stages.optim]")
    found: dict[str, Tables] = {}
    for number, stage in enumerate(stages, 1):
        name = stage.get("name")
        if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
            raise ConfigError(f"{file}: stage {number} needs a name of letters, digits, - and _, not {name!r}")
        if name in found:
            raise ConfigError(f"{file}: two stages have the name '{name}'")
        if "out" in _table(stage, "run"):
            raise ConfigError(
                f"{file}: stage '{name}' names a folder; its own is always OUT/{name}: put out into [run]"
            )
        found[name] = _merged(base, {key: table for key, table in stage.items() if key != "name"})
    return found


def only(stages: Mapping[str, Any], wanted: str, file: str) -> str:
    """The stage that `--stage` names; empty for all.

    Raises:
        ConfigError: there is no such stage; with the closest one.
    """
    if wanted and wanted not in stages:
        names = [name for name in stages if name]
        close = difflib.get_close_matches(wanted, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(names) or 'none'}"
        raise ConfigError(f"--stage {wanted}: {file or 'the command line'} has no such stage: {hint}")
    return wanted


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table that is there and is one; else an empty one."""
    found = tables.get(name)
    return found if isinstance(found, Mapping) else {}


def _merged(base: Tables, changes: Tables) -> Tables:
    merged = dict(base)
    for key, table in changes.items():
        here = base.get(key)
        if not isinstance(table, Mapping) or not isinstance(here, Mapping):
            merged[key] = table
        elif key == "encoders":
            merged[key] = {**here, **{name: _part(here.get(name), part) for name, part in table.items()}}
        elif key in SINGLE_KINDS:
            merged[key] = _part(here, table)
        elif key in OPTION_GROUPS:
            merged[key] = {**here, **table}
        else:
            merged[key] = table  # unknown: refused with the whole configuration
    return merged


def _part(here: Any, table: Any) -> Any:
    if (
        isinstance(here, Mapping)
        and isinstance(table, Mapping)
        and table.get("name", here.get("name")) == here.get("name")
    ):
        return {**here, **table}
    return table
