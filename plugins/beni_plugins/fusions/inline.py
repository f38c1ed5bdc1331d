"""Inline fusion (LLaVA and most others): visual tokens take positions in the text."""

from beni.interfaces import Fusion, FusionConfig


class Inline(Fusion):
    """The base class is all there is to it."""

    beni_api = 1
    Config = FusionConfig
