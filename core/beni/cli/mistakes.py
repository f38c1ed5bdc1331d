"""What a user got wrong on the command line, in one line: which option, why, and what there is instead."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, get_args, get_origin

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
    if found := re.search(r"Required options Missing from .*?: (--\S+) \S+ (.*?) \(required\)", text):
        return f"{found[1]} is required: {found[2]}"
    return f"{text} {HELP}"


def unexpected(word: str, cls: type, arguments: Sequence[str], parts: Mapping[str, str]) -> str:
    """What to say of a word that is no option and belongs to none; arguments as for `explain`."""
    if not word.startswith("--"):
        at = list(arguments).index(word) if word in arguments else 0
        behind = " ".join(arguments[max(0, at - 2) : at])
        return f"unexpected '{word}'{f' behind {behind}' if behind else ''} {HELP}"
    option = word.partition("=")[0].replace("_", "-")
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


def _names(cls: type, prefix: str = "--") -> Iterator[str]:
    """Every option of a dataclass; a group with an annotation (`Annotated[…, arg(name="")]`) has no prefix."""
    for field in dataclasses.fields(cls):
        flat = get_origin(field.type) is Annotated
        kind = get_args(field.type)[0] if flat else field.type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _names(kind, prefix if flat else f"{prefix}{field.name}.".replace("_", "-"))
        else:
            yield f"{prefix}{field.name}".replace("_", "-")
