"""Images from anywhere to encoder inputs: fetch, decode, normalise, cut.

Whatever the file is (palette, RGBA, CMYK, 16-bit, animated, rotated by EXIF), an RGB picture comes out; whatever is not
a picture, or is too large to be honest, is refused with an `ImageError` that names it.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from beni.data.fetch import cached, fetch
from beni.data.spans import open_span
from beni.errors import ImageError
from beni.sample import ImageRef
from beni.types import Box, Crop, EncoderSpec, Size

MAX_PIXELS = 64_000_000
"""Largest image that is decoded; a larger one is taken for a decompression bomb."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture stored in an EXIF orientation upright; from 5 on, width and height are swapped."""
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    RuntimeError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What decoders raise for damaged files; found by flipping bytes of every format."""

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def image_size(ref: ImageRef) -> Size:
    """Size after EXIF rotation, from the file's header alone.

    Raises:
        ImageError: the file is missing or is not an image.
    """
    return ref.size or (_oriented_size_of_bytes(ref) if ref.data else _oriented_size_of_file(ref))


def _oriented_size_of_bytes(ref: ImageRef) -> Size:
    with _open(ref) as image:
        try:
            orientation = _orientation(image)
        except _DAMAGED as error:
            raise ImageError(f"image {ref.name} has a damaged EXIF header: {error}") from error
        width, height = image.size
        return Size(height, width) if orientation >= 5 else Size(width, height)


_oriented_size_of_file = lru_cache(maxsize=1_000_000)(_oriented_size_of_bytes)  # never holds on to bytes of images


def load_image(ref: ImageRef) -> Image.Image:
    """Fetch and decode an image to RGB, upright, on white where it is transparent.

    A download that turns out to be damaged is forgotten, so that the next attempt fetches it again.

    Raises:
        ImageError: missing, truncated, not an image, larger than `MAX_PIXELS`, of another size than its source said, or
            not to be fetched.
    """
    with _open(ref) as image:
        try:
            picture = upright(image)
        except _DAMAGED as error:
            if ref.url:
                cached(ref.url).unlink(missing_ok=True)
            raise ImageError(f"image {ref.name} is damaged: {error}") from error
    if ref.size and picture.size != tuple(ref.size):
        told, found = ("{}x{}".format(*size) for size in (ref.size, picture.size))
        raise ImageError(f"image {ref.name} was said to be {told} pixels large, but is {found}")
    return picture


def upright(image: Image.Image) -> Image.Image:
    """An open image as RGB, turned as its EXIF data say, on white where it is transparent."""
    orientation = _orientation(image)
    picture = _to_rgb(image)
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def draw(image: Image.Image, crop: Crop, mean: tuple[int, int, int], resample: str) -> Image.Image:
    """Draw a crop: its box of the image, resized into its valid rectangle, on a canvas of the background colour.

    Near an edge of the box the colours from beyond it count in, where the image has any, as if the whole image were
    resized and then cut.

    Args:
        image: the source.
        crop: of it.
        mean: the background of crops that name none.
        resample: filter, as `EncoderSpec.resample` names it.
    """
    background = mean if crop.background is None else crop.background
    if crop.valid.left >= crop.valid.right or crop.valid.top >= crop.valid.bottom:
        return Image.new("RGB", crop.canvas, background)
    left, top = round(crop.valid.left), round(crop.valid.top)
    size = (max(1, round(crop.valid.right) - left), max(1, round(crop.valid.bottom) - top))
    whole = size == image.size and crop.box == Box.of(Size(*image.size))
    patch = image if whole else image.resize(size, _RESAMPLE[resample], box=crop.box)
    if size == tuple(crop.canvas):
        return patch
    canvas = Image.new("RGB", crop.canvas, background)
    canvas.paste(patch, (left, top))
    return canvas


def to_pixels(crops: Sequence[Image.Image], spec: EncoderSpec) -> Float[Tensor, "C 3 height width"]:
    """Crops of one size as an encoder's normalised input, float32."""
    bytes_CHW3 = np.stack([np.asarray(crop) for crop in crops])
    pixels = torch.from_numpy(bytes_CHW3).permute(0, 3, 1, 2).contiguous().float().div_(255.0)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (spec.mean, spec.std))
    return pixels.sub_(mean).div_(std)


def mean_colour(spec: EncoderSpec) -> tuple[int, int, int]:
    """The colour that an encoder sees as zero: for padding and for blanked images."""
    red, green, blue = (round(255 * channel) for channel in spec.mean)
    return red, green, blue


def blank_image(spec: EncoderSpec, size: Size | None = None) -> ImageRef:
    """A picture of the mean colour, by default of one pixel: an image in which there is nothing to see."""
    return _plain(mean_colour(spec), size or Size(1, 1))


@lru_cache(maxsize=1024)
def _plain(colour: tuple[int, int, int], size: Size) -> ImageRef:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return ImageRef(data=file.getvalue(), size=size)


@contextmanager
def _open(ref: ImageRef) -> Iterator[Image.Image]:
    """The image with its header read.

    Raises:
        ImageError: missing, not an image, or larger than `MAX_PIXELS`.
    """
    if ref.span:
        with open_span(Path(ref.path), ref.span) as file, _read_header(file, ref.name) as image:
            yield image
        return
    if ref.url:
        image = _read_header(fetch(ref.url, lambda file, name: _read_header(file, name).close()), ref.name)
    else:
        image = _read_header(io.BytesIO(ref.data) if ref.data else Path(ref.path), ref.name)
    with image:
        yield image


def _read_header(file: Path | io.BytesIO | io.BufferedReader, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file)
    except FileNotFoundError as error:
        raise ImageError(f"there is no image {name}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"image {name} has more than the {MAX_PIXELS:,} pixels that are accepted") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"image {name} is not in any image format") from error
    except _DAMAGED as error:
        raise ImageError(f"image {name} cannot be read: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(f"image {name} has {width}x{height} pixels, more than the {MAX_PIXELS:,} that are accepted")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is left to be undone, from the header alone."""
    if image.format == "TIFF":  # turned while loading; its size is told as it will be then
        return 1
    found = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)  # a PNG's own method would decode all of it
    return found if found in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # PIL's own conversion clips instead of scaling
        grey = np.nan_to_num(np.asarray(image, dtype=np.float32))
        return Image.fromarray((grey * (255.0 / _white(image.mode, grey))).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _white(mode: str, grey: np.ndarray) -> float:
    """The value that means white: 65535 for 16 bits; for 32 bits and floats the usual one that holds the brightest."""
    if mode.startswith("I;16"):
        return 65535.0
    brightest = grey.max(initial=0)
    if mode == "F" and brightest <= 1:
        return 1.0
    return 255.0 if brightest <= 255 else 65535.0
