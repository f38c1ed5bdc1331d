"""Heat maps over pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from beni.report.pictures import TINY_SIDE

LONGEST_SIDE = 512
"""Pixels of a drawn heat map; smaller pictures are scaled up."""
RAMP = ((43, 21, 77), (140, 34, 110), (224, 83, 63), (252, 173, 55), (252, 250, 190))
"""Colours of no weight up to the largest: dark violet, red, yellow, and each lighter than the one before."""
FAINTEST, STRONGEST = 0.2, 0.8
"""How much of the colour covers the grey picture, where there is no weight and where it is largest."""
LEAST_SCALE = 4.0
"""So many times the weight of an even look, at least, is the strongest colour: an even look has no bright spot."""


def overlay(picture: Image.Image, heat: np.ndarray, most: float) -> Image.Image:
    """A picture in grey under the colours of its heat map.

    Args:
        picture: RGB.
        heat: [rows, cols] of all of it.
        most: the weight of a cell that gets the strongest colour; common to pictures that are to be compared.
    """
    scale = LONGEST_SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    tiny = max(picture.size) <= TINY_SIDE  # its pixels are squares; smoothing would invent what is between them
    resized = picture.convert("L").resize(size, Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)
    relative = Image.fromarray((heat / most if most > 0 else heat).astype(np.float32))
    level = np.asarray(relative.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    colours, cover = _paint(level)
    grey = np.asarray(resized, dtype=np.float32)[..., None]
    return Image.fromarray((grey * (1 - cover) + colours * cover).round().astype(np.uint8))


def legend() -> str:
    """What colours mean, as a CSS background: no weight at the left, over a picture from white down to black."""
    colours, cover = _paint(np.linspace(0, 1, 16))
    shades = (
        f"rgba({r:.0f}, {g:.0f}, {b:.0f}, {share:.2f})"
        for (r, g, b), [share] in zip(colours.tolist(), cover.tolist(), strict=True)
    )
    return f"linear-gradient(to right, {', '.join(shades)}), linear-gradient(to bottom, white, black)"


def _paint(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colour of each level from 0 to 1, and how much of a picture it covers: [..., 3] and [..., 1]."""
    stops = np.linspace(0, 1, len(RAMP))
    colours = np.stack([np.interp(level, stops, channel) for channel in zip(*RAMP, strict=True)], axis=-1)
    return colours, (FAINTEST + (STRONGEST - FAINTEST) * level)[..., None]


def overlays(pictures: Sequence[Image.Image], heats: Sequence[np.ndarray]) -> tuple[list[Image.Image], float]:
    """Several pictures under one scale of colours: of weight per area, whatever their sizes.

    Returns:
        The pictures, and what the strongest colour stands for, in multiples of what each place would have if the same
        weight lay evenly on all pictures.
    """
    areas = [picture.width * picture.height for picture in pictures]
    density = [heat * heat.size / area for heat, area in zip(heats, areas, strict=True)]
    even = sum(float(heat.sum()) for heat in heats) / max(1, sum(areas))
    times = max(LEAST_SCALE, max(float(each.max()) for each in density) / even) if even else LEAST_SCALE
    return [overlay(picture, each, times * even) for picture, each in zip(pictures, density, strict=True)], times
