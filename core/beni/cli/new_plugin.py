"""`beni new-plugin NAME`: a package with a small part that works, to be changed into one's own."""

import importlib.util
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jinja2
import tyro

from beni.cli.options import parse
from beni.errors import ConfigError
from beni.registry import available

FILES = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    "src/{module}/__init__.py": "__init__.py.jinja",
    "src/{module}/part.py": "{kind}.py.jinja",
    "tests/test_{module}.py": "test.py.jinja",
}
"""File of the package, and its template."""


@dataclass(frozen=True, slots=True)
class NewPluginOptions:
    """Write a package with a part that passes `beni check`: a starting point."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of the package and its folder; the part's name has _ for -."""
    kind: Literal["connector", "encoder", "fusion", "view"] = "connector"
    """What kind of part it is."""
    into: str = "."
    """Where the package's folder is made."""


def new_plugin(arguments: Sequence[str], program: str) -> None:
    """Write the package and say what to do next.

    Raises:
        ConfigError: a name that cannot be one, is taken, or whose folder exists.
    """
    options = parse(NewPluginOptions, arguments, program)
    folder = write(options.name, options.kind, Path(options.into))
    part = options.name.replace("-", "_")
    print(
        f"wrote {folder}\n"
        f"  pip install -e {folder}\n"
        f"  beni check {options.kind} {part}\n"
        f"  beni train --{options.kind} {part}\n"
        f"the {options.kind} is in {folder / 'src' / part / 'part.py'}"
    )


def write(name: str, kind: str, into: Path) -> Path:
    """Write a package; returns its folder.

    Args:
        name: of the package.
        kind: of the part.
        into: the folder's parent.

    Raises:
        ConfigError: a name that cannot be one, is taken, or whose folder exists.
    """
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise ConfigError(f"'{name}' cannot name a package: use small letters and digits, joined by -, as in row-pool")
    if importlib.util.find_spec(module) is not None:
        raise ConfigError(f"a module '{module}' is installed, which '{name}' would hide: choose another name")
    if module in {plugin.name for plugin in available(kind)}:
        raise ConfigError(f"a {kind} '{module}' is installed already: choose another name")
    folder = into / name
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another name, or another place with --into")
    words = {"package": name, "name": module, "module": module, "kind": kind}
    words["class_name"] = "".join(word.capitalize() for word in module.split("_"))
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("beni.cli", "templates/plugin"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    for path, template in FILES.items():
        file = folder / path.format(**words)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(templates.get_template(template.format(**words)).render(words), encoding="utf-8")
    return folder
