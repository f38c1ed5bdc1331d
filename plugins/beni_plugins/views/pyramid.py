"""An image at up to three resolutions: whole, in a few crops, and in many.

Reference: togethercomputer/Dragonfly, src/dragonfly/models/processing_dragonfly.py (process_anyres_image). The medium
grid is chosen by the image's size; the high grid is the medium one times 3 (version 2), or chosen by itself among grids
of its own (version 1). Every crop is squashed to the encoder's input: an image is distorted by as much as its aspect
ratio differs from that of the grid. In version 2, 1 + 4 + 36 crops; in version 1, 1 + 4 + 24.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import View
from beni.types import Box, Crop, EncoderSpec, Grid, ImageLayout, Size


@dataclass(frozen=True, slots=True)
class PyramidConfig(PartConfig):
    levels: Literal["low", "low+medium", "low+medium+high"] = "low+medium+high"
    """low: the whole image as one crop; medium: the best of a few grids of crops; high: a finer grid."""
    medium: tuple[str, ...] = ("2x2", "4x1", "1x4")
    """Grids of the medium level, ROWSxCOLUMNS; each image takes the one that shows it largest. The references' are the
    default."""
    factor: int = 2
    """High crops along each side of a medium crop, where `high` names no grids; 3 in version 2."""
    high: tuple[str, ...] = ()
    """Grids of the high level, chosen independently of the medium one and all of as many crops; 4x6 6x4 8x3 3x8 12x2
    2x12 in version 1."""

    def __post_init__(self) -> None:
        for option in ("medium", "high"):
            for text in getattr(self, option):
                if min(_grid(text)) < 1:
                    raise ConfigError(f"view 'pyramid', option '{option}': '{text}' is not ROWSxCOLUMNS, as in 2x2")
        if not self.medium:
            raise ConfigError("view 'pyramid', option 'medium' is empty: name at least one grid, as in 2x2")
        if self.factor < 1:
            raise ConfigError(f"view 'pyramid', option 'factor': {self.factor} is not a positive number of crops")
        counts = {_grid(text).count for text in self.high}
        if len(counts) > 1:
            raise ConfigError(
                f"view 'pyramid', option 'high': its grids hold {' or '.join(map(str, sorted(counts)))} crops; give "
                f"all of them equally many, so that no image has more crops than one with the largest medium grid"
            )

    def options(self) -> list[list[Grid]]:
        """The grids among which each level chooses: of the low, then the medium, then the high level.

        A high level without grids of its own has none here: it follows the medium level.
        """
        medium, high = ([_grid(text) for text in texts] for texts in (self.medium, self.high))
        return [[Grid(1, 1)], medium, high][: self.levels.count("+") + 1]


class Pyramid(View):
    """The low crop, the medium crops row by row, the high crops row by row."""

    beni_api = 1
    Config = PyramidConfig

    @property
    def needs_size(self) -> bool:  # type: ignore[override]
        """Whether any level has a choice of grids."""
        return any(len(set(grids)) > 1 for grids in self.config.options())

    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        return _cut(size, spec.size, self.grids(size, spec))

    def layout(self, size: Size, encoders: Mapping[str, EncoderSpec]) -> ImageLayout:
        """The crops for every encoder; the first one's input decides the grids, so that all see the same crops."""
        grids = self.grids(size, next(iter(encoders.values())))
        return ImageLayout(size, {key: _cut(size, spec.size, grids) for key, spec in encoders.items()})

    def largest(self, spec: EncoderSpec) -> Size:
        grids = self.config.options()
        rows, cols = max(grids[1] if len(grids) > 1 else grids[0], key=lambda grid: grid.count)
        return Size(cols * spec.size.width, rows * spec.size.height)  # shown as it is by this grid, smaller by others

    def grids(self, size: Size, spec: EncoderSpec) -> list[Grid]:
        """The grid of each level for an image of this size."""
        chosen: list[Grid] = []
        for options in self.config.options():
            if options:
                chosen.append(best_grid(size, spec.size, options))
            else:
                rows, cols = chosen[-1]
                chosen.append(Grid(rows * self.config.factor, cols * self.config.factor))
        return chosen


def best_grid(size: Size, tile: Size, grids: Sequence[Grid]) -> Grid:
    """The grid that shows an image with the most of its pixels; among equals the one that wastes least, then the first.

    The rule is LLaVA's (haotian-liu/LLaVA, llava/mm_utils.py, select_best_resolution): the image is fitted into each
    grid with its aspect ratio kept, and enlarging it does not make more pixels of it.

    Args:
        size: of the image.
        tile: pixels of one crop of the grid.
        grids: what there is to choose from.
    """

    def shown(grid: Grid) -> tuple[int, int]:
        width, height = grid.cols * tile.width, grid.rows * tile.height
        scale = min(width / size.width, height / size.height)
        pixels = min(int(size.width * scale) * int(size.height * scale), size.width * size.height)
        return pixels, pixels - width * height

    return max(grids, key=shown)


def _cut(size: Size, canvas: Size, grids: Sequence[Grid]) -> tuple[Crop, ...]:
    """Crops of equal boxes, grid after grid, row by row."""
    crops = []
    for level, (rows, cols) in enumerate(grids):
        across = [size.width * n / cols for n in range(cols + 1)]
        down = [size.height * n / rows for n in range(rows + 1)]
        crops += [
            Crop(
                canvas,
                box=Box(across[col], down[row], across[col + 1], down[row + 1]),
                valid=Box.of(canvas),
                level=level,
                cell=(row, col),
            )
            for row in range(rows)
            for col in range(cols)
        ]
    return tuple(crops)


def _grid(text: str) -> Grid:
    """The grid that is spelled ROWSxCOLUMNS; 0x0 for another text."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    return Grid(int(found[1]), int(found[2])) if found else Grid(0, 0)
