"""Tiles in the grid that fits an image's size best, put together to one map (LLaVA-1.6, LLaVA-NeXT).

The image keeps its aspect ratio: it is resized to fill the width or height of a grid of encoder inputs, centred on
a background, and cut. The whole image, squashed, comes first. `merge` says what becomes of the tiles' tokens.

References: haotian-liu/LLaVA, llava/mm_utils.py (select_best_resolution, resize_and_pad_image, divide_to_patches,
process_anyres_image); LLaVA-VL/LLaVA-NeXT for ranges of grids and `anyres_max_N`. There images are padded with black.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from beni.config import PartConfig
from beni.errors import ConfigError, ExportError
from beni.interfaces import View
from beni.types import Box, Crop, EncoderSpec, Grid, ImageLayout, Merge, Size

BLACK = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class AnyresConfig(PartConfig):
    pinpoints: tuple[str, ...] = ("1x2", "2x1", "2x2", "3x1", "1x3")
    """Grids to choose from, COLUMNSxROWS in tiles of the encoder's input, or all between two: "(1x1),...,(6x6)"."""
    merge: Literal["flat", "spatial", "spatial_unpad"] = "spatial_unpad"
    """flat: tiles stay one after another; spatial: one map of all tiles; spatial_unpad: the map without its padding,
    each row of which ends in a learned newline where visual tokens stand in the text."""
    shrink_to: int = 0
    """Shrink larger maps to about as many tokens as this many tiles have (N of LLaVA-NeXT's anyres_max_N); 0: never."""
    overview: bool = True
    """Whether the whole image comes first, as one more crop."""
    background: Literal["mean", "black"] = "mean"
    """Colour around the image in its tiles. mean: the encoder's mean colour; black: as in LLaVA-1.6 and LLaVA-NeXT."""

    def __post_init__(self) -> None:
        for text in self.pinpoints:
            if not list(_grids(text)):
                raise ConfigError(
                    f"view 'anyres', option 'pinpoints': '{text}' is neither COLUMNSxROWS, as in 2x1, nor a range of "
                    f"them, as in (1x1),...,(6x6)"
                )
        if not self.pinpoints:
            raise ConfigError("view 'anyres', option 'pinpoints': there is no grid to choose from")
        if self.shrink_to < 0 or (self.shrink_to and self.merge == "flat"):
            raise ConfigError(
                f"view 'anyres', option 'shrink_to': {self.shrink_to} is for merged maps, and a number of tiles: "
                f"0 never shrinks; --view.merge spatial or spatial_unpad makes maps"
            )

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids to choose from; where two fit equally well the first is taken."""
        return tuple(grid for text in self.pinpoints for grid in _grids(text))


def _grids(text: str) -> Iterator[Grid]:
    """The grids that a pinpoint spells, by columns, then rows; none where it spells nothing."""
    one = re.fullmatch(r"(\d+)x(\d+)", text)
    ends = re.fullmatch(r"\((\d+)x(\d+)\),\.\.\.,\((\d+)x(\d+)\)", text.replace(" ", ""))
    if found := one or ends:
        first, last = map(int, found.groups()[:2]), map(int, found.groups()[-2:])
        (least_cols, least_rows), (most_cols, most_rows) = first, last
        for cols in range(max(1, least_cols), most_cols + 1):
            yield from (Grid(rows, cols) for rows in range(max(1, least_rows), most_rows + 1))


class Anyres(View):
    """Overview, then the tiles of the best grid row by row; several encoders share the first one's choice."""

    beni_api = 1
    Config = AnyresConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.grids: tuple[Grid, ...] = config.grids
        self.background = BLACK if config.background == "black" else None

    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        return self._cut(size, spec.size, best_grid(size, spec.size, self.grids))

    def layout(self, size: Size, encoders: Mapping[str, EncoderSpec]) -> ImageLayout:
        grid = best_grid(size, next(iter(encoders.values())).size, self.grids)
        return ImageLayout(
            size, {key: self._cut(size, spec.size, grid) for key, spec in encoders.items()}, self._merge(grid)
        )

    def largest(self, spec: EncoderSpec) -> Size:
        """Of images that fill a grid's width and some rows of tokens, or its height and some columns, the longest.

        Where maps are shrunk that need not be one that fills the largest grid: a map a little too large is kept.
        """
        (width, height), tile = spec.size, spec.grid(spec.size)
        sizes = []
        for rows, cols in self.grids:
            down, across = rows * tile.rows, cols * tile.cols
            sizes += [Size(cols * width, -(-n * rows * height // down)) for n in range(down, 0, -1)]
            sizes += [Size(-(-n * cols * width // across), rows * height) for n in range(across, 0, -1)]
        return max(sizes, key=lambda size: self._length(size, spec.size, tile))

    def native(self, to: str, spec: EncoderSpec) -> Mapping[str, Any]:
        """LLaVA-NeXT's, where it merges, pads and counts as that does: the grids, in pixels, height first."""
        if to != "llava_next":
            return super().native(to, spec)
        wanted = {
            "merge": ("spatial_unpad", "--view.merge spatial_unpad"),
            "shrink_to": (0, "--view.shrink-to 0"),
            "overview": (True, "--view.overview"),
            "background": ("black", "--view.background black"),
        }
        for option, (value, typed) in wanted.items():
            found = getattr(self.config, option)
            if found != value:
                raise ExportError(
                    f"view 'anyres' with the option '{option}' {found} prepares pictures in another way than '{to}': "
                    f"train with {typed}"
                )
        width, height = spec.size
        return {"image_grid_pinpoints": [[rows * height, cols * width] for rows, cols in self.grids]}

    def _length(self, size: Size, canvas: Size, tile: Grid) -> int:
        """Tokens of an image's tiles where each has this grid, newlines included."""
        grid = best_grid(size, canvas, self.grids)
        merge = self._merge(grid)
        if merge is None:
            return grid.count * tile.count
        rows, cols = merge.shape(tile, size)
        return rows * (cols + merge.newline)

    def _merge(self, grid: Grid) -> Merge | None:
        if self.config.merge == "flat":
            return None
        unpad = self.config.merge == "spatial_unpad"
        return Merge(grid, unpad, self.config.shrink_to, newline=unpad)

    def _cut(self, size: Size, canvas: Size, grid: Grid) -> tuple[Crop, ...]:
        whole = centred(size, Size(grid.cols * canvas.width, grid.rows * canvas.height))
        tiles = tuple(
            replace(_tile(size, canvas, whole, (row, col)), background=self.background)
            for row in range(grid.rows)
            for col in range(grid.cols)
        )
        overview = Crop(canvas, box=Box.of(size), valid=Box.of(canvas))
        return (overview, *tiles) if self.config.overview else tiles


def best_grid(size: Size, canvas: Size, grids: tuple[Grid, ...]) -> Grid:
    """The grid of tiles that shows most of an image's pixels, and of those the one with the least padding.

    In the arithmetic of the reference, floating point included, so that an image gets the grid that it gets there.
    """

    def fit(grid: Grid) -> tuple[int, int]:
        width, height = grid.cols * canvas.width, grid.rows * canvas.height
        scale = min(width / size.width, height / size.height)
        shown = min(int(size.width * scale) * int(size.height * scale), size.width * size.height)
        return shown, shown - width * height

    return max(grids, key=fit)


def centred(size: Size, target: Size) -> Box:
    """Where an image that keeps its aspect ratio lies in the middle of a target of which it fills a side."""
    across, down = target.width / size.width, target.height / size.height
    width, height = target
    if across < down:
        height = min(math.ceil(size.height * across), target.height)
    else:
        width = min(math.ceil(size.width * down), target.width)
    left, top = (target.width - width) // 2, (target.height - height) // 2
    return Box(left, top, left + width, top + height)


def _tile(size: Size, canvas: Size, whole: Box, cell: tuple[int, int]) -> Crop:
    """What falls on one tile of an image that is drawn into a box of all tiles; nothing on one that is all padding."""
    x, y = cell[1] * canvas.width, cell[0] * canvas.height
    left, right = max(whole.left, x), min(whole.right, x + canvas.width)
    top, bottom = max(whole.top, y), min(whole.bottom, y + canvas.height)
    if left >= right or top >= bottom:
        return Crop(canvas, Box(0, 0, 0, 0), Box(0, 0, 0, 0), level=1, cell=cell)
    width, height = whole.right - whole.left, whole.bottom - whole.top
    box = Box(
        (left - whole.left) * size.width / width,
        (top - whole.top) * size.height / height,
        (right - whole.left) * size.width / width,
        (bottom - whole.top) * size.height / height,
    )
    return Crop(canvas, box, Box(left - x, top - y, right - x, bottom - y), level=1, cell=cell)
