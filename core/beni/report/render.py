"""Fills the page templates; everything that comes from data is escaped."""

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
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        figures.percent,
        figures.whole,
        figures.decimal,
        figures.quantity,
        figures.operations,
        figures.size,
        figures.duration,
    )
    environment.filters.update({function.__name__: function for function in filters})
    draft = path.with_name(f".{path.name}")
    draft.write_text(environment.get_template(template).render(values), encoding="utf-8", errors="replace")
    draft.replace(path)


def _source(name: str) -> str:
    return files("beni.report").joinpath("templates", name).read_text(encoding="utf-8")
