"""One crop per image, squashed or padded."""

import pytest
from PIL import Image

from beni.data.images import draw, mean_colour
from beni.types import Box, Size
from beni_plugins.views.single import Single, SingleConfig
from tests.plugins.specs import spec

SIZES = [Size(32, 32), Size(64, 32), Size(32, 64), Size(1, 1), Size(1000, 3), Size(7, 900)]


@pytest.mark.parametrize("size", SIZES)
def test_squash_fills_the_canvas(size: Size) -> None:
    [crop] = Single(SingleConfig()).crops(size, spec(8))
    assert crop.box == Box.of(size) and crop.valid == Box.of(crop.canvas) and crop.canvas == spec(8).size


@pytest.mark.parametrize("size", SIZES)
def test_pad_keeps_the_aspect_ratio_in_the_middle(size: Size) -> None:
    [crop] = Single(SingleConfig(fit="pad")).crops(size, spec(8))
    canvas, valid = crop.canvas, crop.valid
    width, height = valid.right - valid.left, valid.bottom - valid.top
    scale = min(canvas.width / size.width, canvas.height / size.height)
    assert abs(width - size.width * scale) <= 1 and abs(height - size.height * scale) <= 1
    assert valid.left >= 0 and valid.right <= canvas.width and valid.top >= 0 and valid.bottom <= canvas.height
    assert abs(valid.left - (canvas.width - valid.right)) <= 1 and abs(valid.top - (canvas.height - valid.bottom)) <= 1
    assert width == canvas.width or height == canvas.height


def test_padding_has_the_mean_colour() -> None:
    size = Size(40, 20)
    [crop] = Single(SingleConfig(fit="pad")).crops(size, spec(8))
    drawn = draw(Image.new("RGB", size, "red"), crop, mean_colour(spec(8)), "bilinear")
    assert drawn.size == spec(8).size
    assert drawn.getpixel((0, 0)) == mean_colour(spec(8)) == (128, 128, 128)
    assert drawn.getpixel((16, 16)) == (255, 0, 0)


def test_every_size_has_the_same_tokens() -> None:
    view = Single(SingleConfig())
    layouts = [view.layout(size, {"main": spec(8)}) for size in SIZES]
    assert not view.needs_size
    assert {len(layout.crops["main"]) for layout in layouts} == {1}
    assert view.bound({"main": spec(8)}).crops["main"][0].canvas == spec(8).size
