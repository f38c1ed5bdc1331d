"""Label-safe augmentation: nothing that could change an answer. No flips, no crops that lose objects, no hues."""

import numpy as np
from PIL import Image


def jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Shift and zoom an image a little; what moves in is the colour of its corner.

    Args:
        image: RGB.
        strength: largest shift as a share of the side, and largest change of scale; 0.1 is gentle.
        rng: decides.
    """
    width, height = image.size
    zoom = 1.0 + strength * rng.uniform(-1, 1)
    shift_x, shift_y = strength * rng.uniform(-1, 1, 2) * (width, height)
    left = width / 2 - zoom * width / 2 + shift_x
    top = height / 2 - zoom * height / 2 + shift_y
    fill = image.getpixel((0, 0))
    matrix = (zoom, 0.0, left, 0.0, zoom, top)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)
