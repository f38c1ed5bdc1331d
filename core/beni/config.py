"""Frozen configurations: of a part, of a run. Each is its own command line, file format and documentation.

A part declares its options as a frozen dataclass nested in it as `Config`. A `Part` is a chosen class with its options;
a `RunConfig` is everything that decides what a training run computes. Both survive the round trip through JSON and
TOML, and refuse a field they do not know.

An option may itself be a part: its field is annotated `Annotated[Part, OfKind("connector")]`. In a file it is a table
inside the part's table, on the command line `--connector.inner mlp` with `--connector.inner.kind linear`.
"""

import dataclasses
import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import pydantic
from pydantic_core import core_schema

from beni.errors import BeniError, ConfigError, PluginError
from beni.options import BatchConfig, DataConfig, OptimConfig, PeftOptions, RunOptions
from beni.origin import Origin
from beni.registry import Plugin, available, find, is_path, unfinished

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, slots=True)
class PartConfig:
    """Base of every part's `Config`; the options of a part without options."""

    argument: ClassVar[str] = ""
    """The option that `NAME:VALUE` sets (`timm:vit_tiny_patch16_224` sets `model`)."""


def at_least_one(config: PartConfig, kind: str, part: str, *options: str) -> None:
    """Refuse sizes and counts below 1, for a part's `__post_init__`.

    Raises:
        ConfigError: names the first such option as the command line spells it.
    """
    for option in options:
        if getattr(config, option) < 1:
            raise ConfigError(f"{kind} '{part}': --{kind}.{option.replace('_', '-')} must be at least 1")


@dataclass(frozen=True, slots=True)
class Part:
    """A part that was chosen: the class and its options."""

    plugin: Plugin
    config: PartConfig

    def load(self) -> type:
        """The part's class."""
        return self.plugin.load()

    def to_dict(self) -> dict[str, Any]:
        """A table: `name` (with its package, where that is not beni), where it came from, and the options.

        A part it holds is a table in it.
        """
        return {"name": self.plugin.reference, **to_dict(self.config), "origin": Origin.of(self.plugin).to_dict()}


@dataclass(frozen=True, slots=True)
class OfKind:
    """What kind of part an option holds: `Annotated[Part, OfKind("connector")]`."""

    kind: str
    """A key of `beni.registry.GROUPS`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._read)

    def _read(self, table: Any, info: Any) -> Part:
        try:
            return part_from_dict(self.kind, table)
        except BeniError as error:
            raise type(error)(f"{info.context}, option '{info.field_name}': {error}") from error


def held_parts(cls: type) -> dict[str, str]:
    """The options of a part's `Config` that are parts themselves, and their kinds."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        option.name: note.kind
        for option in dataclasses.fields(cls)
        for note in get_args(hints[option.name])[1:]
        if isinstance(note, OfKind)
    }


def choose(kind: str, reference: str, options: Mapping[str, Any] | None = None, spelled: bool = False) -> Part:
    """Resolve a reference such as `perceiver`, `timm:vit_tiny_patch16_224` or `my.py:Mine` to a part with its options.

    Args:
        kind: a key of `beni.registry.GROUPS`.
        reference: a name, with `:VALUE` for the part's main option; or a class by path. For an LLM also a Hugging Face
            id (`owner/name`) or a folder.
        options: values of the part's `Config`; the rest keeps its defaults.
        spelled: the values are strings that spell what is meant (`?size=64`).

    Raises:
        PluginError: no such part, or one that is unfinished.
        ConfigError: an option that the part does not have, or a value of the wrong type.
    """
    options = dict(options or {})
    name, value = reference, ""
    if not is_path(reference):
        if kind == "llm" and _is_model(reference):
            reference = f"hf:{reference}"
        name, _, value = reference.partition(":")
    plugin = find(kind, name)
    config_class = getattr(plugin.load(), "Config", None)
    if not (isinstance(config_class, type) and issubclass(config_class, PartConfig)):
        raise PluginError(
            f"{kind} '{name}' ({plugin.target}) has no `Config`: every part declares its options as a frozen dataclass "
            f"that derives from beni.config.PartConfig"
        )
    if missing := unfinished(config_class):
        raise PluginError(f"{kind} '{name}' ({plugin.target}): {config_class.__name__} does not implement {missing}")
    if value:
        if not config_class.argument:
            raise ConfigError(f"{kind} '{name}' takes nothing behind a colon: write '{name}' instead of '{reference}'")
        options.setdefault(config_class.argument, value)
    config = from_dict(config_class, options, where=f"{kind} '{name}'", spelled=spelled)
    return Part(plugin, config)


def _is_model(reference: str) -> bool:
    """Whether an LLM is named by a hub id or a folder; a registered name is never taken for a folder."""
    name = reference.partition(":")[0]
    if "/" in name:
        return True
    return name.partition("@")[0] not in {plugin.name for plugin in available("llm")} and Path(reference).is_dir()


def part_from_dict(kind: str, table: Any) -> Part:
    """The inverse of `Part.to_dict`; resolves the name again on this machine.

    Warns, with `OtherRelease`, where it is found in another release of its package than it was saved with.

    Raises:
        ConfigError: not a table, or one without a name.
        PluginError: the part is not installed here; says which package it came with.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{kind} {table!r} is not a table: it needs one of its own, with name = …")
    options = {key: value for key, value in table.items() if key not in ("name", "origin")}
    if not isinstance(table.get("name"), str):
        raise ConfigError(f"the table of the {kind} has no 'name': it must say which part to use")
    origin = Origin.read(table.get("origin"))
    if origin is None:
        return choose(kind, table["name"], options)
    try:
        part = choose(kind, table["name"], options)
    except PluginError as error:
        raise origin.explain(kind, table["name"], error) from error
    origin.compare(part.plugin)
    return part


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values; a part it holds is a table as `Part.to_dict` makes it."""
    values = {option.name: getattr(config, option.name) for option in dataclasses.fields(config)}
    parts = {name: value.to_dict() for name, value in values.items() if isinstance(value, Part)}
    return json.loads(json.dumps(dataclasses.asdict(config) | parts))


def from_dict(cls: type[ConfigT], data: Any, where: str, spelled: bool = False) -> ConfigT:
    """Build a frozen dataclass from plain values, checking every name and type.

    Types are taken at their word: in a file, `"64"` and `true` are not numbers.

    Args:
        cls: the dataclass.
        data: a table of plain values as JSON knows them.
        where: whose options these are, for messages.
        spelled: values are strings that spell what is meant; `"64"` is a number.

    Raises:
        ConfigError: an unknown field (with the closest name) or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {data!r}, not a table of options")
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(known) or 'none'}"
            raise ConfigError(f"{where} has no option '{key}': {hint}")
    adapter = pydantic.TypeAdapter(cls)
    try:
        if spelled:
            return adapter.validate_python(dict(data), context=where)
        return adapter.validate_json(json.dumps(dict(data), default=str), strict=True, context=where)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        message = first["msg"].replace("Input should be", "should be")
        raise ConfigError(f"{where}, option '{option}': {message}, not {first['input']!r}") from error


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides a run: the parts and the options. `to_dict` is what `config.json` holds."""

    encoders: Mapping[str, Part]
    connector: Part
    fusion: Part
    view: Part
    llm: Part
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    peft: PeftOptions = field(default_factory=PeftOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def to_dict(self) -> dict[str, Any]:
        """Nested tables of plain values, the same shape as a `--config` file."""
        groups = {name: to_dict(getattr(self, name)) for name in OPTION_GROUPS}
        return (
            {"encoders": {key: part.to_dict() for key, part in self.encoders.items()}}
            | {kind: getattr(self, kind).to_dict() for kind in SINGLE_KINDS}
            | groups
        )

    def training_hash(self) -> str:
        """Identifies what is computed: equal for a run and its continuation, whatever folder or device it uses."""
        table = learned_by(self.to_dict())
        seed = table.pop("run")["seed"]
        plain = json.loads(json.dumps([table, seed]), parse_int=float)  # 20 and 20.0 are the same option
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def learned_by(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What decides what is learned, of the tables of a run as `config.json` has them."""
    kept = {name: table for name, table in tables.items() if name not in RECORDED}
    for group in ("data", "optim"):
        kept[group] = {name: value for name, value in tables.get(group, {}).items() if _decides(name, value)}
    return kept | {"run": {"seed": tables.get("run", {}).get("seed")}}


def _decides(option: str, value: Any) -> bool:
    """Whether an option of the data or the optimizer belongs to what identifies a run."""
    return option not in UNTRAINED and (option not in ADDED or value != ADDED[option])


SINGLE_KINDS = ("connector", "fusion", "view", "llm")
"""The kinds of which a model has exactly one."""
OPTION_GROUPS: dict[str, type] = {
    "data": DataConfig,
    "batch": BatchConfig,
    "optim": OptimConfig,
    "peft": PeftOptions,
    "run": RunOptions,
}
"""Tables of a configuration file that are not parts."""
UNTRAINED = ("eval_data", "eval_limit", "eval_batch", "max_new_tokens", "workers", "skip_steps", "init")
"""Options of the data and the optimizer that change nothing in what has been learned; or, as where a run started,
nothing in how it goes on from a checkpoint."""
ADDED = {"stream_block": DataConfig().stream_block, "samples": OptimConfig().samples, "flops": OptimConfig().flops}
"""Options that checkpoints of earlier versions do not know, and the values that change nothing for these."""
RECORDED = ("loaded", "adapted", "quantized")
"""Tables of a run's config.json that say what happened, and decide nothing."""
DEFAULT_PARTS = {"encoder": "tiny", "connector": "mlp", "fusion": "inline", "view": "single", "llm": "tiny"}


def run_config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """The inverse of `RunConfig.to_dict`; missing tables take their defaults.

    Raises:
        ConfigError: an unknown table or field.
        PluginError: a part that is not installed here.
    """
    tables = {name: table for name, table in data.items() if name not in RECORDED}
    encoders = tables.pop("encoders", {"main": {"name": DEFAULT_PARTS["encoder"]}})
    if not isinstance(encoders, Mapping) or not encoders:
        raise ConfigError("the configuration's [encoders] holds one table per encoder: [encoders.main] with a name")
    singles = {kind: tables.pop(kind, {"name": DEFAULT_PARTS[kind]}) for kind in SINGLE_KINDS}
    for key in tables:
        if key not in OPTION_GROUPS:
            allowed = ["encoders", *SINGLE_KINDS, *OPTION_GROUPS]
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"there are {', '.join(allowed)}"
            raise ConfigError(f"the configuration has no table [{key}]: {hint}")
    rest: dict[str, Any] = {kind: part_from_dict(kind, table) for kind, table in singles.items()}
    rest |= {name: from_dict(cls, tables.get(name, {}), f"table [{name}]") for name, cls in OPTION_GROUPS.items()}
    return RunConfig({key: part_from_dict("encoder", table) for key, table in encoders.items()}, **rest)


def read_config_file(path: str | Path) -> dict[str, Any]:
    """A TOML or JSON file as nested tables.

    Raises:
        ConfigError: missing or malformed file; the message has the line.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {path}")
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except (ValueError, OSError) as error:  # also what is not UTF-8
        raise ConfigError(f"{path} is not valid {kind}: {error}") from error
    if not isinstance(tables, dict):
        raise ConfigError(f"{path} holds a {type(tables).__name__}, not tables of options")
    return tables
