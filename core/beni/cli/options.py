"""Two-phase command line: first which parts, then everybody's options, typed and documented by the parts themselves."""

import dataclasses
import io
import keyword
import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

import tyro

from beni.cli import held
from beni.cli.mistakes import explain, unexpected
from beni.cli.shown import shown
from beni.cli.stages import only, split
from beni.config import (
    DEFAULT_PARTS,
    OPTION_GROUPS,
    SINGLE_KINDS,
    Part,
    RunConfig,
    choose,
    read_config_file,
    run_config_from_dict,
)
from beni.errors import BeniError, ConfigError
from beni.registry import is_path

OptionsT = TypeVar("OptionsT")


def _offered(kind: str, what: str) -> Any:
    """Help of a selector: what the part does, and which are installed."""
    return tyro.conf.arg(help=held.offered(kind, what))


@dataclass(frozen=True, slots=True)
class Selectors:
    """The parts of the model. Each brings options of its own: add --help to see them."""

    encoder: Annotated[
        tuple[str, ...], _offered("encoder", "[KEY=]NAME[:MODEL] …; several make a multi-encoder model. Installed")
    ] = (DEFAULT_PARTS["encoder"],)
    connector: Annotated[str, _offered("connector", "What turns features into visual tokens")] = DEFAULT_PARTS[
        "connector"
    ]
    fusion: Annotated[str, _offered("fusion", "How visual tokens meet the language model")] = DEFAULT_PARTS["fusion"]
    view: Annotated[str, _offered("view", "How an image is cut")] = DEFAULT_PARTS["view"]
    llm: Annotated[str, _offered("llm", "A Hugging Face id (owner/name), a folder, or one of")] = DEFAULT_PARTS["llm"]
    config: str = ""
    """TOML or JSON file with the same tables as a run's config.json; options given here override it."""
    stage: str = ""
    """Of a file with stages, only this one; it starts from what the one before it saved in --out."""


def parse_run(arguments: Sequence[str], program: str, others: Collection[str] = ()) -> RunConfig:
    """A run's configuration from command line arguments.

    Args:
        arguments: what the user typed.
        program: its name, for --help.
        others: tables of a file that are about something else.

    Raises:
        BeniError: an unknown part, a wrong option, or a file that cannot be read; one line.
        SystemExit: after --help.
    """
    stages = parse_stages(arguments, program, others).stages
    if list(stages) != [""]:
        raise ConfigError(f"the file has the stages {', '.join(stages)}, and this is about one run")
    return stages[""]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command line asks to train."""

    stages: Mapping[str, RunConfig]
    """Configurations by name, in order; one without a name where no file has stages."""
    only: str
    """The one stage to train; empty for all."""
    out: str
    """Folder of all."""


def parse_stages(arguments: Sequence[str], program: str, others: Collection[str] = ()) -> Asked:
    """The stages that a command line asks for. Its options are those of every stage; else as `parse_run`.

    Raises:
        BeniError: as `parse_run`.
        SystemExit: after --help.
    """
    chosen = _selectors(arguments)
    tables = read_config_file(chosen.config) if chosen.config else {}
    tables = {name: table for name, table in tables.items() if name not in others}
    found = {
        name: _parse(chosen, _tables(own, chosen, arguments), arguments, program)
        for name, own in split(tables, chosen.config).items()
    }
    out = next(iter(found.values())).run.out
    if "" not in found and not out:
        if "auto" in {config.run.resume for config in found.values()}:
            raise ConfigError("--resume auto continues the stages in --out: name that folder")
        out = str(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(chosen.config).stem}")
    return Asked(found, only(found, chosen.stage, chosen.config), out)


def _parse(chosen: Selectors, tables: dict[str, Any], arguments: Sequence[str], program: str) -> RunConfig:
    try:
        base = run_config_from_dict(tables)
    except BeniError as error:
        raise type(error)(f"{chosen.config}: {error}" if chosen.config else str(error)) from error
    single = list(base.encoders) == ["main"]
    options = {key: "encoder" if single else f"encoder.{key}" for key in base.encoders}
    encoders = {key: held.choose_held(part, options[key], arguments) for key, part in base.encoders.items()}
    singles = {kind: held.choose_held(getattr(base, kind), kind, arguments) for kind in SINGLE_KINDS}
    fields: list[held.Field] = [("selectors", _unprefixed(Selectors), chosen)]
    fields += [(name, _unprefixed(cls), getattr(base, name)) for name, cls in OPTION_GROUPS.items()]
    if single:
        fields.append(held.option_field("encoder", encoders["main"]))
    else:
        several = dataclasses.make_dataclass("Encoders", [held.option_field(*pair) for pair in encoders.items()])
        fields.append(("encoder", several, dataclasses.field(default_factory=several)))
    fields += [held.option_field(*pair) for pair in singles.items()]
    called = [(part, options[key]) for key, part in encoders.items()] + [(part, kind) for kind, part in singles.items()]
    names = dict(pair for part, option in called for pair in held.names(part, option))
    parsed: Any = parse(dataclasses.make_dataclass("Run", fields, frozen=True), arguments, program, names)
    own = {"main": parsed.encoder} if single else vars(parsed.encoder)
    rest: dict[str, Any] = {kind: held.with_options(part, getattr(parsed, kind)) for kind, part in singles.items()}
    rest |= {name: getattr(parsed, name) for name in OPTION_GROUPS}
    return RunConfig({key: held.with_options(part, own[key]) for key, part in encoders.items()}, **rest)


def parse(
    cls: type[OptionsT], arguments: Sequence[str], program: str, parts: Mapping[str, str] | None = None
) -> OptionsT:
    """A dataclass from command line arguments; what tyro says of mistakes becomes one line.

    Args:
        cls: the options.
        arguments: what the user typed.
        program: its name, for --help.
        parts: the chosen parts, by what they are called here, for messages about options that they do not have.

    Raises:
        ConfigError: an unknown or malformed option, with the closest one that exists.
        SystemExit: after --help.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            asked = shown(cls) if {"-h", "--help"} & set(arguments) else cls
            parsed, unknown = tyro.cli(asked, args=list(arguments), prog=program, return_unknown_args=True)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(explain(said.getvalue(), cls, arguments, parts or {})) from stop
    if unknown:
        raise ConfigError(unexpected(unknown[0], cls, arguments, parts or {}))
    return parsed


def split_own(cls: type, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments that are for a command's own options, and all others, which are for `beni train`.

    Args:
        cls: the command's options, a dataclass: switches, lists, and options of one value.
        arguments: what the user typed; a call for help is the command's own.
    """
    hints = get_type_hints(cls)
    kinds = {f"--{name.replace('_', '-')}": hint for name, hint in hints.items()}
    kinds |= {name.replace("--", "--no-", 1): hint for name, hint in kinds.items() if hint is bool}
    own: list[str] = []
    rest: list[str] = []
    at = 0
    while at < len(arguments):
        word = arguments[at]
        at += 1
        name, equals, _ = word.partition("=")
        hint = kinds.get(name.replace("_", "-"))
        mine = own if hint is not None or word in ("-h", "--help") else rest
        mine.append(word)
        most = 0 if hint in (None, bool) or equals else len(arguments) if get_origin(hint) is tuple else 1
        while most and at < len(arguments) and (most == 1 or not arguments[at].startswith("--")):
            mine.append(arguments[at])
            at, most = at + 1, most - 1
    return own, rest


def _selectors(arguments: Sequence[str]) -> Selectors:
    """Which parts are asked for, ignoring every other option. A file fills in what the command line leaves open."""
    given = held.given(("encoder", *SINGLE_KINDS, "config", "stage"), arguments, lists=("encoder",))
    if "encoder" in given:
        given["encoder"] = tuple(given["encoder"])
    return Selectors(**given)


def _tables(file: Mapping[str, Any], chosen: Selectors, arguments: Sequence[str]) -> dict[str, Any]:
    """Tables of the configuration: the file's, with the parts that the command line names in place of the file's."""
    tables = dict(file)
    given = {word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--")}
    for kind in SINGLE_KINDS:
        if kind in given or kind not in tables:
            tables[kind] = choose(kind, getattr(chosen, kind)).to_dict()
    if "encoder" in given or "encoders" not in tables:
        tables["encoders"] = {key: part.to_dict() for key, part in encoders_of(chosen.encoder).items()}
    return tables


def encoders_of(references: Sequence[str]) -> dict[str, Part]:
    """Encoders by key: the key before `=`, else the part's name; a single one without a key is `main`."""
    encoders: dict[str, Part] = {}
    for reference in references:
        match = re.fullmatch(r"(?:([^=/:]*)=)?(.*)", reference, re.DOTALL)
        assert match is not None
        key, name = match[1], match[2]
        if key is not None and (not key.isidentifier() or keyword.iskeyword(key)):
            raise ConfigError(f"--encoder {reference}: the key '{key}' must be a word of letters, digits and _")
        if not name:
            raise ConfigError(f"--encoder {reference}: a name is missing, as in {key or 'KEY'}=tiny")
        part = choose("encoder", name)
        if key is None:
            key = "main" if len(references) == 1 else re.sub(r"\W+", "_", name if is_path(name) else name.split(":")[0])
        if key in encoders:
            raise ConfigError(
                f"--encoder: two encoders have the key '{key}': give each its own, as in a={name} b={name}"
            )
        encoders[key] = part
    return encoders


def _unprefixed(cls: type) -> Any:
    return Annotated[cls, tyro.conf.arg(name="")]
