"""Two-phase command line: first which parts, then everybody's options, typed and documented by the parts themselves."""

import argparse
import dataclasses
import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro

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
from beni.errors import ConfigError
from beni.registry import is_path

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, slots=True)
class Selectors:
    """The parts of the model. Each brings options of its own: add --help to see them."""

    encoder: tuple[str, ...] = (DEFAULT_PARTS["encoder"],)
    """[KEY=]NAME[:MODEL] …: tiny, timm:MODEL, hf:MODEL; several make a multi-encoder model."""
    connector: str = DEFAULT_PARTS["connector"]
    """What turns features into visual tokens: mlp, perceiver."""
    fusion: str = DEFAULT_PARTS["fusion"]
    """How visual tokens meet the language model: inline, xattn."""
    view: str = DEFAULT_PARTS["view"]
    """How an image is cut: single."""
    llm: str = DEFAULT_PARTS["llm"]
    """tiny, smollm2, a Hugging Face id (owner/name), or a folder."""
    config: str = ""
    """TOML or JSON file with the same tables as a run's config.json; options given here override it."""


def parse_run(arguments: Sequence[str], program: str) -> RunConfig:
    """A run's configuration from command line arguments.

    Raises:
        BeniError: an unknown part, a wrong option, or a file that cannot be read; one line.
        SystemExit: after --help.
    """
    chosen = _selectors(arguments)
    base = run_config_from_dict(_tables(chosen, arguments))
    single = list(base.encoders) == ["main"]
    encoders = {key: part.config for key, part in base.encoders.items()}
    fields: list[tuple[str, Any, Any]] = [("selectors", _unprefixed(Selectors), chosen)]
    fields += [(name, _unprefixed(cls), getattr(base, name)) for name, cls in OPTION_GROUPS.items()]
    if single:
        fields.append(_part_field("encoder", encoders["main"]))
    else:
        several = dataclasses.make_dataclass("Encoders", [_part_field(key, config) for key, config in encoders.items()])
        fields.append(("encoder", several, dataclasses.field(default_factory=several)))
    fields += [_part_field(kind, getattr(base, kind).config) for kind in SINGLE_KINDS]
    parsed = parse(dataclasses.make_dataclass("Run", fields, frozen=True), arguments, program)
    configs = {"main": parsed.encoder} if single else {key: getattr(parsed.encoder, key) for key in encoders}
    return RunConfig(
        encoders={key: Part(part.plugin, configs[key]) for key, part in base.encoders.items()},
        **{kind: Part(getattr(base, kind).plugin, getattr(parsed, kind)) for kind in SINGLE_KINDS},
        **{name: getattr(parsed, name) for name in OPTION_GROUPS},
    )


def parse(cls: type[OptionsT], arguments: Sequence[str], program: str) -> OptionsT:
    """A dataclass from command line arguments; what tyro says of mistakes becomes one line.

    Raises:
        ConfigError: an unknown or malformed option, with the closest one that exists.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(cls, args=list(arguments), prog=program, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_one_line(said.getvalue())) from stop


def _selectors(arguments: Sequence[str]) -> Selectors:
    """Which parts are asked for, ignoring every other option. A file fills in what the command line leaves open."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("--encoder", nargs="+")
    for name in (*SINGLE_KINDS, "config"):
        reader.add_argument(f"--{name}")
    try:
        found, _ = reader.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    given = {name: value for name, value in vars(found).items() if value is not None}
    if "encoder" in given:
        given["encoder"] = tuple(given["encoder"])
    return Selectors(**given)


def _tables(chosen: Selectors, arguments: Sequence[str]) -> dict[str, Any]:
    """Tables of the configuration: the file's, with the parts that the command line names in place of the file's."""
    tables = read_config_file(chosen.config) if chosen.config else {}
    given = {word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--")}
    for kind in SINGLE_KINDS:
        if kind in given or kind not in tables:
            tables[kind] = choose(kind, getattr(chosen, kind)).to_dict()
    if "encoder" in given or "encoders" not in tables:
        tables["encoders"] = {key: part.to_dict() for key, part in _encoders(chosen.encoder).items()}
    return tables


def _encoders(references: Sequence[str]) -> dict[str, Part]:
    """Encoders by key: the key before `=`, else the part's name; a single one without a key is `main`."""
    encoders: dict[str, Part] = {}
    for reference in references:
        match = re.fullmatch(r"(?:([A-Za-z_]\w*)=)?(.+)", reference)
        assert match is not None
        key, name = match[1], match[2]
        part = choose("encoder", name)
        if key is None:
            key = "main" if len(references) == 1 else re.sub(r"\W+", "_", name if is_path(name) else name.split(":")[0])
        if key in encoders:
            raise ConfigError(f"--encoder: two encoders are called '{key}'; give them keys: a={name} b={name}")
        encoders[key] = part
    return encoders


def _part_field(name: str, config: Any) -> tuple[str, Any, Any]:
    return name, type(config), dataclasses.field(default=config)


def _unprefixed(cls: type) -> Any:
    return Annotated[cls, tyro.conf.arg(name="")]


def _one_line(message: str) -> str:
    """tyro's boxed message as one sentence."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", message)
    lines = [re.sub(r"[╭╮╰╯│─]+", " ", line).strip() for line in plain.splitlines()]
    kept = [line for line in lines if line and not line.endswith("error") and not line.startswith("For full helptext")]
    text = " ".join(line for line in kept if line not in ("Unrecognized options", "Required options"))
    return re.sub(r"\s+", " ", text).replace(" Perhaps you meant:", "; perhaps you meant") + " (--help lists all options)"

