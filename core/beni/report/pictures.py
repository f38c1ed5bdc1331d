"""Pictures inside a page: data URIs, small enough to embed by the dozen."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from beni.data.images import load_image
from beni.errors import ImageError
from beni.sample import ImageRef

LONGEST_SIDE = 256
"""Pixels; larger pictures are scaled down."""
TINY_SIDE = 128
"""Pictures up to this many pixels are scaled up by the browser, each pixel a visible square."""
LARGEST_PNG = 24_000
"""Bytes; a picture that takes more as PNG is a photograph and becomes a JPEG."""
JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Picture:
    """An embedded picture."""

    uri: str
    width: int
    """Pixels of the embedded picture, and `height`."""
    height: int

    @property
    def tiny(self) -> bool:
        """Whether it is shown larger than it is, without smoothing."""
        return max(self.width, self.height) <= TINY_SIDE


def embed(image: Image.Image, longest: int = LONGEST_SIDE) -> Picture:
    """A picture as a data URI, scaled down until its longer side is at most `longest` pixels."""
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "png", optimize=True)
    kind = "png"
    if file.tell() > LARGEST_PNG:
        file, kind = io.BytesIO(), "jpeg"
        image.save(file, "jpeg", quality=JPEG_QUALITY)
    coded = base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{coded}", *image.size)


def drawn(ref: ImageRef) -> Picture | str:
    """A sample's picture, or why there is none."""
    try:
        return embed(load_image(ref))
    except ImageError as error:
        return str(error)
