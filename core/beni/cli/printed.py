"""What commands print of results: JSON with numbers that can be read. Files hold them whole."""

import json
from collections.abc import Mapping
from typing import Any

DIGITS = 5
"""Significant ones of each number."""


def printed(result: Mapping[str, Any], indent: int | None = None) -> str:
    """A result as JSON; `indent` as for `json.dumps`."""
    return json.dumps(_short(result), indent=indent)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value
