"""beni from Python: configure, build, train."""

from typing import Any

from beni.cli.options import parse_run
from beni.config import RunConfig


def configure(**options: Any) -> RunConfig:
    """A configuration from the command line's options, by name: `configure(connector="perceiver", steps=100)`.

    Underscores stand for the dashes, and a dictionary for a part's own options:
    `configure(connector={"name": "perceiver", "num_latents": 32})`. Lists are options with several values.

    Raises:
        BeniError: as the command line would.
    """
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        own = dict(value) if isinstance(value, dict) else {"name": value}
        words += [flag, *_words(own.pop("name"))] if "name" in own else []
        for option, setting in own.items():
            words += [f"{flag}.{option.replace('_', '-')}", *_words(setting)]
    return parse_run(words, program="beni.configure")


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]
