"""Inline fusion (LLaVA and most others): visual tokens take positions in the text."""

from collections.abc import Sequence
from dataclasses import dataclass

from beni.errors import IncompatiblePartsError
from beni.interfaces import Fusion, FusionConfig, Newline, spell_blocks
from beni.types import Grid, ImageLayout


@dataclass(frozen=True, slots=True)
class InlineConfig(FusionConfig):
    newline: Newline = "none"
    """Learned newlines among the visual tokens. none: only those that the view asks for; row: behind every row of every
    block that is a grid (Cambrian-1); block: behind every block (Dragonfly)."""

    def spell(self, layout: ImageLayout, shapes: Sequence[Grid | int]) -> list[str | int]:
        if self.newline == "row" and not any(isinstance(shape, Grid) for shape in shapes):
            raise IncompatiblePartsError(
                "fusion 'inline' wants a newline behind every row of visual tokens, but the connector's tokens have no "
                "rows: use --fusion.newline block, or a connector that keeps a grid (mlp, concat)"
            )
        return spell_blocks(layout, shapes, self.newline)


class Inline(Fusion):
    """The base class, with a choice of newlines."""

    beni_api = 1
    Config = InlineConfig
