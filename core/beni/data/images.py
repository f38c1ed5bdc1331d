"""Images from anywhere to encoder inputs: fetch, decode, normalise, cut.

Whatever the file is (palette, RGBA, CMYK, 16-bit, animated, rotated by EXIF), an RGB picture comes out; whatever is not
a picture, or is too large to be honest, is refused with an `ImageError` that names it.
"""

import hashlib
import io
import os
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import requests
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from beni.sample import ImageRef
from beni.errors import ImageError
from beni.types import Box, Crop, EncoderSpec, Size

MAX_PIXELS = 64_000_000
"""Largest image that is decoded; a larger one is taken for a decompression bomb."""
MAX_BYTES = 64_000_000
"""Largest file that is downloaded."""
FETCH_TIMEOUT_S = 15.0
FETCH_TRIES = 3
RETRY_WAIT_S = 0.5

_ROTATED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_EXIF_ORIENTATION = 0x0112

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def cache_dir() -> Path:
    """Where downloaded images lie: `$BENI_CACHE`, else `~/.cache/beni`."""
    return Path(os.environ.get("BENI_CACHE", Path.home() / ".cache" / "beni"))


def image_size(ref: ImageRef) -> Size:
    """Size after EXIF rotation, from the file's header alone.

    Raises:
        ImageError: the file is missing or is not an image.
    """
    return ref.size or (_oriented_size_of_bytes(ref) if ref.data else _oriented_size_of_file(ref))


def _oriented_size_of_bytes(ref: ImageRef) -> Size:
    with _open(ref) as image:
        width, height = image.size
        rotated = image.getexif().get(_EXIF_ORIENTATION) in _ROTATED
        return Size(height, width) if rotated else Size(width, height)


_oriented_size_of_file = lru_cache(maxsize=1_000_000)(_oriented_size_of_bytes)  # never holds on to bytes of images


def load_image(ref: ImageRef) -> Image.Image:
    """Fetch and decode an image to RGB, upright, on white where it is transparent.

    Raises:
        ImageError: missing, truncated, not an image, larger than `MAX_PIXELS`, or not to be fetched.
    """
    with _open(ref) as image:
        try:
            return _to_rgb(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise ImageError(f"image {ref.name} cannot be decoded: {error}") from error


def draw(image: Image.Image, crop: Crop, background: tuple[int, int, int], resample: str) -> Image.Image:
    """Draw a crop: its box of the image, resized into its valid rectangle, on a canvas of the background colour."""
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


def blank_image(spec: EncoderSpec) -> ImageRef:
    """A one-pixel picture of the mean colour: an image in which there is nothing to see."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), mean_colour(spec)).save(file, "png")
    return ImageRef(data=file.getvalue(), size=Size(1, 1))


def _open(ref: ImageRef) -> Image.Image:
    file: str | io.BytesIO = io.BytesIO(ref.data) if ref.data else (ref.path or str(_fetch(ref.url)))
    try:
        image = Image.open(file)
    except FileNotFoundError as error:
        raise ImageError(f"there is no image {ref.name}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{ref.name} is not a readable image: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(f"image {ref.name} has {width}x{height} pixels, more than the {MAX_PIXELS:,} that are accepted")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16- and 32-bit grey: PIL's own conversion clips instead of scaling
        grey = np.asarray(image, dtype=np.float32)
        span = 65535.0 if grey.max(initial=0) > 255 else 255.0
        return Image.fromarray((grey * (255.0 / span)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _fetch(url: str) -> Path:
    """Download once, whole or not at all; later calls find the file."""
    path = cache_dir() / "images" / hashlib.sha256(url.encode()).hexdigest()
    if path.exists():
        return path
    error: Exception | None = None
    for attempt in range(FETCH_TRIES):
        if attempt:
            time.sleep(RETRY_WAIT_S * 2 ** (attempt - 1))
        try:
            return _download(url, path)
        except requests.HTTPError as failed:
            error = failed
            if failed.response.status_code < 500:
                break
        except requests.RequestException as failed:
            error = failed
    raise ImageError(f"image {url} cannot be fetched ({attempt + 1} tries): {error}") from error


def _download(url: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 4 * FETCH_TIMEOUT_S
    with requests.get(url, stream=True, timeout=FETCH_TIMEOUT_S) as response:
        response.raise_for_status()
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                    if file.tell() > MAX_BYTES:
                        raise ImageError(f"image {url} is larger than {MAX_BYTES:,} bytes")
                    if time.monotonic() > deadline:
                        raise requests.Timeout(f"not complete after {4 * FETCH_TIMEOUT_S:.0f} s")
                expected = response.headers.get("Content-Length")
                if expected and not response.headers.get("Content-Encoding") and file.tell() != int(expected):
                    raise requests.ConnectionError(f"{file.tell()} of {expected} bytes arrived")
                file.close()
                Path(file.name).replace(path)
            finally:
                Path(file.name).unlink(missing_ok=True)
    return path
