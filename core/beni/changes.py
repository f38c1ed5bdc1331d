"""In which options two runs differ, for messages: as the command line names them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from beni.config import OPTION_GROUPS, SINGLE_KINDS

MOST = 5
"""Options that a message names."""
WIDEST = 60
"""Characters of its values."""
UNKNOWN = "not there"
"""In place of the value of an option that one of two runs does not have."""

Options = Mapping[str, str]
"""Values by options, spelled."""


def spelled(tables: Mapping[str, Any]) -> Options:
    """The options of a run.

    Args:
        tables: what `RunConfig.to_dict` makes, or some of it; what is no table of options is left out.
    """
    encoders = tables.get("encoders", {})
    found: dict[str, str] = {}
    for key, part in encoders.items():
        found |= _part("--encoder" if list(encoders) == ["main"] else f"--encoder.{key}", part)
    for kind in SINGLE_KINDS:
        found |= _part(f"--{kind}", tables.get(kind, {}))
    for group in OPTION_GROUPS:
        found |= {f"--{_dashed(name)}": _value(value) for name, value in tables.get(group, {}).items()}
    return found


def changed(before: Options, now: Options) -> list[str]:
    """Options that differ; where that is a part, not those of the part."""
    names = _different(before, now)
    return [name for name in names if not any(name.startswith((f"{part}.", f"{part} ")) for part in names)]


def nearest(one: Options, others: Sequence[Options]) -> Options:
    """The others' that differ in the fewest options, also in those that another part does not have."""
    return min(others, key=lambda other: len(_different(one, other)))


def told(before: Sequence[Options], now: Sequence[Options]) -> str:
    """What is different: each option with its values then and now, those that are most often so first.

    Args:
        before: of some runs.
        now: of those that they are compared with, one each.
    """
    values: dict[str, list[tuple[str, str]]] = {}
    for one, other in zip(before, now, strict=True):
        for name in changed(one, other):
            values.setdefault(name, []).append((one.get(name, UNKNOWN), other.get(name, UNKNOWN)))
    names = sorted(values, key=lambda name: -len(values[name]))
    said = []
    for name in names[:MOST]:
        then, here = zip(*values[name], strict=True)
        said.append(f"{name} {_several(then)}, now {_several(here)}")
    return "; ".join(said) + (f"; and {len(names) - MOST} more" if len(names) > MOST else "")


def _different(before: Options, now: Options) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _part(option: str, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if name == "name":
            yield option, _value(value)
        elif name == "origin":
            yield f"{option} from", " ".join(str(value.get(each, "")) for each in ("distribution", "version", "class"))
        elif isinstance(value, Mapping) and "name" in value:
            yield from _part(f"{option}.{_dashed(name)}", value)
        else:
            yield f"{option}.{_dashed(name)}", _value(value)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _value(value: Any) -> str:
    """As it is typed; 20 and 20.0 are the same."""
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_value(each)}" for name, each in value.items())
    if isinstance(value, list):
        return " ".join(map(_value, value))
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _several(values: Iterable[str]) -> str:
    """Different ones, short enough for a message: what is long is cut in the middle."""
    text = " or ".join(value or "none" for value in dict.fromkeys(values))
    return text if len(text) <= WIDEST else f"{text[: WIDEST // 3]} … {text[-WIDEST // 2 :]}"
