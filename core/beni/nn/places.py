"""Where in its picture a token is: the inverse of how the picture was cut and drawn."""

from collections.abc import Sequence
from typing import NamedTuple

from beni.types import Box, Crop, EncoderSpec, Grid, ImageLayout, Merge, Size


class Place(NamedTuple):
    """The part of a picture that a token stands for."""

    box: Box
    """In pixels of the picture."""
    share: float
    """Of the token's area; the rest of it is padding."""


NOWHERE = Place(Box(0.0, 0.0, 0.0, 0.0), 0.0)
"""Of a token that shows nothing but padding."""


def crop_places(crop: Crop, grid: Grid, spec: EncoderSpec) -> list[Place]:
    """The places of a crop's tokens, row by row.

    Args:
        crop: how it was drawn.
        grid: of the tokens, which may be more or fewer than the encoder's: they cover what those cover.
        spec: the encoder.
    """
    own = spec.grid(crop.canvas)
    return grid_places(crop, grid, Box(0, 0, own.cols * spec.stride, own.rows * spec.stride))


def grid_places(crop: Crop, grid: Grid, on_canvas: Box) -> list[Place]:
    """The places of a grid that divides a rectangle of a crop's canvas evenly, row by row."""
    height = (on_canvas.bottom - on_canvas.top) / grid.rows
    width = (on_canvas.right - on_canvas.left) / grid.cols
    return [
        _place(
            Box(
                on_canvas.left + col * width,
                on_canvas.top + row * height,
                on_canvas.left + (col + 1) * width,
                on_canvas.top + (row + 1) * height,
            ),
            crop,
        )
        for row in range(grid.rows)
        for col in range(grid.cols)
    ]


def merged_places(layout: ImageLayout, crops: Sequence[Crop], tile: Grid, spec: EncoderSpec) -> list[Place]:
    """The places in the map that an image's tiles become, row by row; a shrunk map covers what the whole one did.

    Args:
        layout: of the image; its `merge` says how the map is made.
        crops: the tiles, row by row.
        tile: the grid of each.
        spec: the encoder.
    """
    assert layout.merge is not None
    canvas = Size(layout.merge.tiles.cols * crops[0].canvas.width, layout.merge.tiles.rows * crops[0].canvas.height)
    whole = _whole(crops, canvas)
    down, across = _edges(layout.merge, tile, layout.size, crops[0].canvas, spec)
    return [_place(Box(left, top, right, bottom), whole) for top, bottom in down for left, right in across]


def _whole(crops: Sequence[Crop], canvas: Size) -> Crop:
    """All tiles as one crop: the picture and where it lies, from the rectangles of the tiles that show it."""
    shown = [crop for crop in crops if crop.valid.right > crop.valid.left and crop.valid.bottom > crop.valid.top]
    at = [(crop.cell[1] * crop.canvas.width, crop.cell[0] * crop.canvas.height) for crop in shown]
    valid = _around(
        [
            Box(x + crop.valid.left, y + crop.valid.top, x + crop.valid.right, y + crop.valid.bottom)
            for crop, (x, y) in zip(shown, at, strict=True)
        ]
    )
    return Crop(canvas, _around([crop.box for crop in shown]), valid)


def _around(boxes: Sequence[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def _edges(
    merge: Merge, tile: Grid, size: Size, canvas: Size, spec: EncoderSpec
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Where the rows of a merged map begin and end on the canvas of all tiles, and where its columns do."""
    own, shape, kept = spec.grid(canvas), merge.shape(tile, size), merge.kept(tile, size)
    found = []
    for side in range(2):
        pitch = (canvas.height, canvas.width)[side]
        step = own[side] * spec.stride / tile[side]

        def at(token: float, last: bool, length: int = tile[side], pitch: int = pitch, step: float = step) -> float:
            """The pixel where a token begins, or, of the last one of a stretch, ends."""
            number = int(token // length) - (1 if last and token % length == 0 else 0)
            return number * pitch + (token - number * length) * step

        first, per = kept[side].start, len(kept[side]) / shape[side]
        found.append([(at(first + n * per, False), at(first + (n + 1) * per, True)) for n in range(shape[side])])
    return found[0], found[1]


def _place(rect: Box, crop: Crop) -> Place:
    """What of a picture a rectangle of a crop's canvas shows."""
    valid, box = crop.valid, crop.box
    left, right = max(rect.left, valid.left), min(rect.right, valid.right)
    top, bottom = max(rect.top, valid.top), min(rect.bottom, valid.bottom)
    if left >= right or top >= bottom:
        return NOWHERE
    across = (box.right - box.left) / (valid.right - valid.left)
    down = (box.bottom - box.top) / (valid.bottom - valid.top)
    share = (right - left) * (bottom - top) / ((rect.right - rect.left) * (rect.bottom - rect.top))
    return Place(
        Box(
            box.left + (left - valid.left) * across,
            box.top + (top - valid.top) * down,
            box.left + (right - valid.left) * across,
            box.top + (bottom - valid.top) * down,
        ),
        share,
    )
