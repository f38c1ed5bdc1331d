"""Each level partitions the image; its grid is the published rule's; no image has more crops than the largest."""

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beni.data.images import draw, mean_colour
from beni.errors import ConfigError
from beni.types import Box, EncoderSpec, Grid, Size
from beni_plugins.views.pyramid import Pyramid, PyramidConfig, best_grid
from tests.plugins.specs import spec

SIZES = [Size(64, 64), Size(101, 37), Size(1, 5), Size(7, 900), Size(1, 1), Size(3000, 2000), Size(1000, 3)]
CLIP = spec(8, side=336, stride=14)
VERSION_2: dict[str, Any] = {"factor": 3}
VERSION_1: dict[str, Any] = {"high": ("4x6", "6x4", "8x3", "3x8", "12x2", "2x12")}


def pyramid(**options: Any) -> Pyramid:
    return Pyramid(PyramidConfig(**options))


LLAVA_16 = [Grid(2, 1), Grid(1, 2), Grid(2, 2), Grid(1, 3), Grid(3, 1)]


@pytest.mark.parametrize(
    ("size", "best"),
    [
        (Size(640, 480), Grid(2, 2)),
        (Size(480, 640), Grid(2, 2)),
        (Size(336, 336), Grid(2, 1)),  # as good as 1x2, and named before it
        (Size(1000, 300), Grid(1, 3)),
        (Size(300, 1000), Grid(3, 1)),
        (Size(1024, 768), Grid(2, 2)),
        (Size(1920, 1080), Grid(2, 2)),
        (Size(100, 1000), Grid(3, 1)),
        (Size(672, 672), Grid(2, 2)),
        (Size(333, 500), Grid(2, 1)),
    ],
)
def test_the_best_grid_is_llavas(size: Size, best: Grid) -> None:
    """What LLaVA-1.6's rule makes of these images with its own grids of 336 pixels."""
    assert best_grid(size, CLIP.size, LLAVA_16) == best


def test_a_small_image_takes_the_smallest_grid_that_holds_it() -> None:
    grids = [Grid(4, 4), Grid(2, 2), Grid(2, 3)]
    assert best_grid(Size(672, 600), CLIP.size, grids) == Grid(2, 2)
    assert best_grid(Size(673, 600), CLIP.size, grids) == Grid(2, 3)
    assert best_grid(Size(1, 1), CLIP.size, grids) == Grid(2, 2)


@pytest.mark.parametrize(
    ("size", "medium", "high_1"),
    [
        (Size(1000, 1000), Grid(2, 2), Grid(4, 6)),
        (Size(1000, 2100), Grid(4, 1), Grid(8, 3)),
        (Size(4000, 1000), Grid(1, 4), Grid(3, 8)),
        (Size(6000, 1000), Grid(1, 4), Grid(2, 12)),
        (Size(1000, 1500), Grid(2, 2), Grid(6, 4)),
    ],
)
def test_the_references_pyramids(size: Size, medium: Grid, high_1: Grid) -> None:
    high_2 = Grid(3 * medium.rows, 3 * medium.cols)
    for options, high, count in ((VERSION_2, high_2, 41), (VERSION_1, high_1, 29)):
        view = pyramid(**options)
        assert view.grids(size, CLIP) == [Grid(1, 1), medium, high]
        assert len(view.crops(size, CLIP)) == count


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, VERSION_1, {"levels": "low"}, {"levels": "low+medium"}])
def test_every_level_partitions_the_image_row_by_row(size: Size, options: dict[str, Any]) -> None:
    view = pyramid(**options)
    crops = list(view.crops(size, spec(8)))
    assert [crop.level for crop in crops] == sorted(crop.level for crop in crops)
    assert all(crop.canvas == spec(8).size and crop.valid == Box.of(crop.canvas) for crop in crops)
    grids = view.grids(size, spec(8))
    assert len(grids) == 1 + view.config.levels.count("+")
    for level, (rows, cols) in enumerate(grids):
        boxes = {crop.cell: crop.box for crop in crops if crop.level == level}
        assert list(boxes) == list(product(range(rows), range(cols)))
        for (row, col), box in boxes.items():
            assert (box.left, box.top) == (size.width * col / cols, size.height * row / rows)
            assert (box.right, box.bottom) == (size.width * (col + 1) / cols, size.height * (row + 1) / rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        VERSION_1,
        VERSION_2,
        {"levels": "low"},
        {"medium": ("1x1", "1x2", "2x3", "5x1")},
        {"medium": ("1x2", "6x1", "2x2"), "high": ("2x4", "4x2")},
    ],
)
@pytest.mark.parametrize("side", [16, 64, 336])
def test_no_image_has_more_crops_than_the_largest(options: dict[str, Any], side: int) -> None:
    view = pyramid(**options)
    encoders = {"a": spec(8, side=side), "b": spec(8, side=2 * side)}
    bound = view.bound(encoders)
    most = {key: Counter(crop.level for crop in crops) for key, crops in bound.crops.items()}
    rng = np.random.default_rng(0)
    for width, height in (*SIZES, *np.exp(rng.uniform(0, np.log(5000), (60, 2))).astype(int).tolist()):
        for key, crops in view.layout(Size(width, height), encoders).crops.items():
            assert Counter(crop.level for crop in crops) <= most[key]


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, True),
        ({"levels": "low"}, False),
        ({"levels": "low+medium"}, True),
        ({"medium": ("3x2",)}, False),
        ({"medium": ("3x2", "3x2")}, False),
        ({"medium": ("2x2",), "high": ("4x6", "6x4")}, True),
        ({"medium": ("2x2",), "high": ("4x6", "6x4"), "levels": "low+medium"}, False),
        ({"medium": ("2x2",), "high": ("4x4",)}, False),
    ],
)
def test_the_size_matters_where_there_is_a_choice(options: dict[str, Any], needs: bool) -> None:
    view = pyramid(**options)
    found = {tuple((crop.level, crop.cell) for crop in view.crops(size, spec(8))) for size in SIZES}
    assert view.needs_size == needs == (len(found) > 1)


def test_crops_put_together_are_the_image() -> None:
    """An image twice the encoder's input: the medium crops show its pixels as they are."""
    side = spec(8).size.width
    pixels = np.random.default_rng(0).integers(0, 256, (2 * side, 2 * side, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    crops = pyramid(levels="low+medium").crops(Size(*image.size), spec(8))[1:]
    drawn = [np.asarray(draw(image, crop, mean_colour(spec(8)), "bilinear")) for crop in crops]
    whole = np.concatenate([np.concatenate(drawn[:2], axis=1), np.concatenate(drawn[2:], axis=1)])
    np.testing.assert_array_equal(whole, pixels)


def test_all_encoders_see_the_same_crops() -> None:
    """A small image fills the grids of a small encoder and not those of a large one; the first decides for both."""
    small, large = spec(8, side=16), spec(8, side=64)
    options: dict[str, Any] = {"levels": "low+medium", "medium": ("1x1", "4x4")}

    def cells(encoders: dict[str, EncoderSpec]) -> list[list[tuple[int, int]]]:
        layout = pyramid(**options).layout(Size(64, 64), encoders)
        return [[crop.cell for crop in crops] for crops in layout.crops.values()]

    assert len(cells({"large": large})[0]) == 2
    for first, other in ((small, large), (large, small)):
        one, two = cells({"one": first, "two": replace(other, width=4)})
        assert one == two == cells({"one": first})[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"medium": ("2x2", "2")}, "option 'medium': '2' is not ROWSxCOLUMNS"),
        ({"medium": ("0x2",)}, "option 'medium': '0x2' is not ROWSxCOLUMNS"),
        ({"high": ("2*2",)}, r"option 'high': '2\*2' is not ROWSxCOLUMNS"),
        ({"medium": ()}, "option 'medium' is empty"),
        ({"factor": 0}, "option 'factor': 0 is not a positive number"),
        ({"high": ("4x6", "4x4")}, "option 'high': its grids hold 16 or 24 crops"),
    ],
)
def test_refuses_grids_that_are_none(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PyramidConfig(**options)
