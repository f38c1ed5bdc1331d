"""Heat maps are drawn where they are hot, and compared on one scale."""

import numpy as np
from PIL import Image

from beni.chat.drawing import LONGEST_SIDE, RAMP, overlay, overlays


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
    first, second = overlays([small, large], [np.full((96, 96), 0.5 / 96**2)] * 2)
    assert np.asarray(first).mean() > np.asarray(second).mean()
    assert np.asarray(overlays([small], [np.zeros((96, 96))])[0]).std() < 20
