"""The tiles partition the image and show it larger."""

import numpy as np
import pytest
from PIL import Image

from beni.data.images import draw, mean_colour
from beni.errors import ConfigError
from beni.types import Box, Size
from beni_plugins.views.split import Split, SplitConfig
from tests.plugins.specs import spec

SIZES = [Size(64, 64), Size(101, 37), Size(1, 5), Size(7, 900)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_tiles_partition_the_image_row_by_row(size: Size, tiles: int) -> None:
    overview, *cut = Split(SplitConfig(tiles=tiles)).crops(size, spec(8))
    assert overview.box == Box.of(size) and (overview.level, overview.cell) == (0, (0, 0))
    assert [crop.cell for crop in cut] == [(row, col) for row in range(tiles) for col in range(tiles)]
    assert all(crop.canvas == spec(8).size and crop.valid == Box.of(crop.canvas) for crop in (overview, *cut))
    for crop in cut:
        (row, col), box = crop.cell, crop.box
        assert (box.left, box.top) == (size.width * col / tiles, size.height * row / tiles)
        assert (box.right, box.bottom) == (size.width * (col + 1) / tiles, size.height * (row + 1) / tiles)
    assert Split(SplitConfig(tiles=tiles, overview=False)).crops(size, spec(8)) == tuple(cut)


def test_tiles_put_together_are_the_image() -> None:
    """An image twice the encoder's input: the four tiles show its pixels as they are."""
    rng = np.random.default_rng(0)
    side = spec(8).size.width
    pixels = rng.integers(0, 256, (2 * side, 2 * side, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    crops = Split(SplitConfig(overview=False)).crops(Size(*image.size), spec(8))
    drawn = [np.asarray(draw(image, crop, mean_colour(spec(8)), "bilinear")) for crop in crops]
    whole = np.concatenate([np.concatenate(drawn[:2], axis=1), np.concatenate(drawn[2:], axis=1)])
    np.testing.assert_array_equal(whole, pixels)


def test_every_size_has_the_same_crops() -> None:
    view = Split(SplitConfig(tiles=3))
    assert not view.needs_size
    assert {len(view.layout(size, {"main": spec(8)}).crops["main"]) for size in SIZES} == {10}
    assert len(view.bound({"main": spec(8)}).crops["main"]) == 10


def test_refuses_no_tiles() -> None:
    with pytest.raises(ConfigError, match="option 'tiles': 0 is not a positive number"):
        SplitConfig(tiles=0)
