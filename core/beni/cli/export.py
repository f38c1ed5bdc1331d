"""`beni export RUN/model --to llava --out FOLDER`: a saved model for those who do not have beni."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from beni.cli.options import parse
from beni.cli.printed import printed
from beni.export.export import TARGETS
from beni.export.export import export as export_model


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Write a saved model as a class that Transformers has itself, if that class computes the same."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder of a saved model (RUN/model)."""
    to: Annotated[str, tyro.conf.arg(help=f"The class's family: {', '.join(TARGETS)}.")]
    out: str
    """Folder to make."""


def export(arguments: Sequence[str], program: str) -> None:
    """Export a model; prints the class, and by how much logits and pictures differ."""
    options = parse(ExportOptions, arguments, program)
    print(printed(export_model(options.model, options.to, options.out), indent=1))
