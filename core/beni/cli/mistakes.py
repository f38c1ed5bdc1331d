"""What a user got wrong on the command line, in one line: which option, why, and what there is instead."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, get_args, get_origin

import tyro

MEANINGS = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "[INT [INT ...]]": "whole numbers",
    "[FLOAT [FLOAT ...]]": "numbers",
}
"""tyro's names of types, for readers."""
HELP = "(--help lists all options)"


def explain(message: str, cls: type, arguments: Sequence[str], parts: Mapping[str, str]) -> str:
    """tyro's boxed message as one sentence.

    Args:
        message: what tyro wrote.
        cls: the options that there are.
        arguments: what the user typed.
        parts: the chosen parts, by what they are called on the command line.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", message)
    text = re.sub(r"\s+", " ", re.sub(r"[╭╮╰╯│─]+", " ", plain)).strip()
    if found := re.search(r"Unrecognized options: (\S+)", text):
        return unexpected(found[1].rstrip(","), cls, arguments, parts)
    if found := re.search(r"Error parsing (--\S+): ", text):
        option = found[1]
        given = " ".join(_values(option, arguments))
        wanted = re.search(rf"Argument helptext: {re.escape(option)} (\[.*?\]\]|\S+)", text)
        meant = MEANINGS.get(wanted[1], wanted[1]) if wanted else "what it takes"
        return f"{option} {given}: not {meant} {HELP}"
    if found := re.search(r"invalid choice '(.*?)' for argument '(--\S+)'. Expected one of \((.*?),?\)", text):
        return f"{found[2]} {found[1]}: choose one of {found[3].replace(chr(39), '')}"
    if found := re.search(r"Missing value for argument '(--\S+)'", text):
        return f"{found[1]} needs a value {HELP}"
    if found := re.search(r"Missing value for argument '([a-z_]+)'", text):
        return _without_a_name(found[1], arguments)
    if found := re.search(r"Required options Missing from .*?: (--\S+) \S+ (.*?) \(required\)", text):
        several = [(name, values) for name in _names(cls) if len(values := _values(name, arguments)) > 1]
        took = "".join(f" Is it '{values[-1]}', which {name} took?" for name, values in several)
        return f"{found[1]} is required: {found[2]}{took}"
    if found := re.search(r"Required options Missing from .*?: ([A-Z]+) (.*?) \(required\)", text):
        return f"{found[1]} is required: {found[2]}"
    return f"{text} {HELP}"


def unexpected(word: str, cls: type, arguments: Sequence[str], parts: Mapping[str, str]) -> str:
    """What to say of a word that is no option and belongs to none; arguments as for `explain`."""
    if not word.startswith("--"):
        at = list(arguments).index(word) if word in arguments else 0
        behind = " ".join(arguments[max(0, at - 2) : at])
        named = {each.partition("=")[0].replace("_", "-") for each in arguments}
        meant = [f"{name} {word}" for name in _required(cls) if name not in named and not word.startswith("-")]
        hint = f": did you mean {meant[0]}?" if meant else f" {HELP}"
        return f"unexpected '{word}'{f' behind {behind}' if behind else ''}{hint}"
    option = word.partition("=")[0].replace("_", "-")
    for name in _positionals(cls):
        if name.startswith(option.removeprefix("--")):
            return _without_a_name(name, arguments)
    known = list(_names(cls))
    group, _, last = option.removeprefix("--").rpartition(".")
    kind = group if group in parts else group.partition(".")[0]
    inside = [name for name in known if name.startswith(f"--{kind}.")] if kind in parts or group else []
    among = inside or known
    close = difflib.get_close_matches(last, {name.rpartition(".")[2].removeprefix("--") for name in among}, n=1)
    meant = [name for name in among if close and re.split(r"[.]|--", name)[-1] == close[0]]
    if meant:
        return f"unknown option {word}: did you mean {' or '.join(meant[:3])}?"
    if kind in parts:
        has = f"has {', '.join(inside)}" if inside else "has no options"
        return f"unknown option {word}: {kind} '{parts[kind]}' {has}"
    return f"unknown option {word} {HELP}"


def _values(option: str, arguments: Sequence[str]) -> list[str]:
    """The words behind an option."""
    values: list[str] = []
    for at, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            values = [value] if equals else []
            for following in arguments[at + 1 :]:
                if following.startswith("--"):
                    break
                values.append(following)
    return values


def _without_a_name(name: str, arguments: Sequence[str]) -> str:
    """That a value is given by itself: `beni chat runs/a/model`, not `--model runs/a/model`."""
    spelled = [word for word in arguments if word.startswith("--") and name.startswith(word[2:].partition("=")[0])]
    for word in spelled:
        given = " ".join(_values(word.partition("=")[0], arguments))
        return f"{word.partition('=')[0]} is no option here: write {given or name.upper()} by itself {HELP}"
    return f"{name.upper()} is missing {HELP}"


def _positionals(cls: type) -> list[str]:
    """What a dataclass takes without a name."""
    return [field.name for field in dataclasses.fields(cls) if tyro.conf.Positional in get_args(field.type)]


def _required(cls: type) -> list[str]:
    """Options without a default."""
    nothing = dataclasses.MISSING
    fields = [f for f in dataclasses.fields(cls) if f.default is nothing and f.default_factory is nothing]
    return [f"--{field.name}".replace("_", "-") for field in fields if field.name not in _positionals(cls)]


def _names(cls: type, prefix: str = "--") -> Iterator[str]:
    """Every option of a dataclass; a group with an annotation (`Annotated[…, arg(name="")]`) has no prefix."""
    for field in dataclasses.fields(cls):
        if field.name in _positionals(cls):
            continue
        flat = get_origin(field.type) is Annotated
        kind = get_args(field.type)[0] if flat else field.type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _names(kind, prefix if flat else f"{prefix}{field.name}.".replace("_", "-"))
        else:
            yield f"{prefix}{field.name}".replace("_", "-")
