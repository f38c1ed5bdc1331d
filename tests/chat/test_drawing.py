"""Heat maps are drawn where they are hot, and compared on one scale."""

import re

import numpy as np
import pytest
from PIL import Image

from beni.chat.drawing import LEAST_SCALE, LONGEST_SIDE, RAMP, legend, overlay, overlays


def test_the_hottest_cell_has_the_strongest_colour() -> None:
    heat = np.zeros((4, 8))
    heat[1, 6] = 0.5
    drawn = np.asarray(overlay(Image.new("RGB", (64, 32), "white"), heat, 0.5), dtype=int)
    assert drawn.shape == (LONGEST_SIDE // 2, LONGEST_SIDE, 3)
    hot, cold = drawn[96, 416], drawn[200, 100]
    assert np.abs(hot - np.array(RAMP[-1])).max() < 30
    assert np.abs(cold - (0.8 * 255 + 0.2 * np.array(RAMP[0]))).max() < 2


def test_pictures_share_a_scale_of_weight_per_area() -> None:
    """Half of the weight on a quarter of the area is hotter than half of it on all."""
    small, large = Image.new("RGB", (32, 32)), Image.new("RGB", (64, 64))
    (first, second), _ = overlays([small, large], [np.full((96, 96), 0.5 / 96**2)] * 2)
    assert np.asarray(first).mean() > np.asarray(second).mean()
    assert np.asarray(overlays([small], [np.zeros((96, 96))])[0][0]).std() < 20


def test_the_scale_is_in_multiples_of_an_even_look() -> None:
    """However much weight a picture has: an even look is a quarter of the scale, and all in one cell is its end."""
    picture, spot = Image.new("RGB", (64, 64)), np.zeros((8, 8))
    spot[3, 3] = 0.1
    for weight in (0.1, 0.9):
        [even], times = overlays([picture], [np.full((8, 8), weight / 64)])
        assert times == LEAST_SCALE
        assert np.array_equal(np.asarray(even), np.asarray(overlay(picture, np.full((8, 8), 0.25), 1.0)))
    assert overlays([picture], [spot])[1] == pytest.approx(64)


def test_the_legend_shows_what_is_drawn() -> None:
    """Its ends, over white and over black, are the pixels of a map without weight and of one with the most."""
    [strip, _] = re.findall(r"linear-gradient\(([^()]*(?:\([^()]*\)[^()]*)*)\)", legend())
    shades = [tuple(map(float, shade.split(","))) for shade in re.findall(r"rgba\((.*?)\)", strip)]
    for background in (0, 255):
        picture = Image.new("RGB", (64, 64), (background,) * 3)
        for level, (*colour, share) in zip((0.0, 1.0), (shades[0], shades[-1]), strict=True):
            drawn = np.asarray(overlay(picture, np.full((4, 4), level), 1.0))[32, 32]
            assert np.abs(drawn - (background * (1 - share) + share * np.array(colour))).max() < 2
