"""Fills the page templates; everything that comes from data is escaped."""

import html
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from beni.report import figures


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Write a self-contained HTML file, whole or not at all.

    Args:
        path: the file; its folder exists.
        template: a file of `templates/`.
        values: what the template names; a name it misses is an error.
    """
    write_whole(path, fill(template, values))


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8", errors="replace")
    draft.replace(path)


def fill(template: str, values: Mapping[str, Any], escape: bool = True) -> str:
    """Fill a template.

    Args:
        template: a file of `templates/`.
        values: what it names; a name it misses is an error.
        escape: as HTML, what comes from data; Markdown has the filters `cell` and `code` for that.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in figures.ALL}, cell=_cell, code=_code)
    return environment.get_template(template).render(values)


def _cell(value: object) -> str:
    """A value as text in a cell of a Markdown table, whatever is in it."""
    return " ".join(html.escape(str(value), quote=False).split()).replace("|", "\\|").replace("`", "'")


def _code(value: object) -> str:
    """A value as code in a cell of a Markdown table; a dash for nothing."""
    text = " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
    return f"`{text}`" if text else figures.MISSING


def _source(name: str) -> str:
    return files("beni.report").joinpath("templates", name).read_text(encoding="utf-8")
