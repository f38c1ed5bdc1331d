"""Conformance suites for parts: subclass the one of your kind, name the part, and run pytest or `beni check`.

from beni.testing import ConnectorConformance

class TestMine(ConnectorConformance):
    part = "mine"
    options = {"num_latents": 4}
"""

from collections.abc import Mapping
from typing import Any

from beni.testing.connector import ConnectorConformance
from beni.testing.encoder import EncoderConformance, assert_keeps_promises, crops
from beni.testing.fusion import FusionConformance
from beni.testing.llm import LanguageModelConformance
from beni.testing.model import ModelConformance
from beni.testing.source import SourceConformance
from beni.testing.suite import Conformance, Outcome, checks, run, run_all
from beni.testing.view import ViewConformance

SUITES: dict[str, type[Conformance]] = {
    "encoder": EncoderConformance,
    "connector": ConnectorConformance,
    "fusion": FusionConformance,
    "view": ViewConformance,
    "llm": LanguageModelConformance,
    "source": SourceConformance,
}


def suite_for(kind: str, part: str | type, options: Mapping[str, Any]) -> type[Conformance]:
    """The suite of a part, without writing a class."""
    return type(f"Test{kind.capitalize()}", (SUITES[kind],), {"part": part, "options": dict(options)})


__all__ = [
    "SUITES",
    "Conformance",
    "ConnectorConformance",
    "EncoderConformance",
    "FusionConformance",
    "LanguageModelConformance",
    "ModelConformance",
    "Outcome",
    "SourceConformance",
    "ViewConformance",
    "assert_keeps_promises",
    "checks",
    "crops",
    "run",
    "run_all",
    "suite_for",
]
