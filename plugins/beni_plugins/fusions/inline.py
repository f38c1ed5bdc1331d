"""Inline fusion (LLaVA and most others): visual tokens take positions in the text."""

from dataclasses import dataclass

from beni.interfaces import Fusion, InTextConfig


@dataclass(frozen=True, slots=True)
class InlineConfig(InTextConfig):
    """The options of all fusions of this kind."""


class Inline(Fusion):
    """The base class, with a choice of newlines."""

    beni_api = 1
    Config = InlineConfig
