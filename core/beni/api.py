"""beni from Python: configure, build, train."""

from typing import Any

from beni.cli.options import parse_run
from beni.config import RunConfig


def configure(**options: Any) -> RunConfig:
    """A configuration from the command line's options, by name: `configure(connector="perceiver", steps=100)`.

    Underscores stand for the dashes, and a dictionary for a part's own options:
    `configure(connector={"name": "perceiver", "num_latents": 32})`, which may hold another. Lists are options with
    several values.

    Raises:
        BeniError: as the command line would.
    """
    words = [word for name, value in options.items() for word in _words(f"--{name.replace('_', '-')}", value)]
    return parse_run(words, program="beni.configure")


def _words(option: str, value: Any) -> list[str]:
    """An option with its values; for a dictionary, the part's name and its own options."""
    if not isinstance(value, dict):
        return [option, *map(str, value)] if isinstance(value, (list, tuple)) else [option, str(value)]
    own = dict(value)
    words = _words(option, own.pop("name")) if "name" in own else []
    return words + [word for name, v in own.items() for word in _words(f"{option}.{name.replace('_', '-')}", v)]
