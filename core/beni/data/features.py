"""What encoders made of images, kept on disk: one file for each image and encoder."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from beni.data.document import DocumentImage
from beni.data.images import load_image
from beni.errors import ImageError
from beni.sample import ImageRef
from beni.types import EncoderSpec, Features, Grid

DRAFT = ".draft"
"""How names of files end that are not whole yet."""


class FeatureStore:
    """Features of images as some encoders make them.

    A file is there whole or not at all, whoever writes or reads it at the same time.

    Args:
        folders: by encoder key; each belongs to one encoder with one set of weights, behind one view.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)

    def files(self, image: DocumentImage) -> dict[str, Path]:
        """Where the features of an image are, cut as it is here: by encoder key."""
        identity = _identity(image.ref)
        return {key: folder / _name(identity, image, key) for key, folder in self.folders.items()}

    def read(self, image: DocumentImage) -> dict[str, Features]:
        """By encoder key.

        Raises:
            ImageError: the image cannot be read, or a file is missing or damaged; the message says what to do.
        """
        return {key: _read(file, image.ref) for key, file in self.files(image).items()}


def write(file: Path, features: Features) -> None:
    """Keep what an encoder made of an image.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "tokens": features.tokens_ND,
        "grids": torch.tensor([[grid.rows, grid.cols] for grid in features.grids]),
    }
    if features.prefix_CPD is not None:
        tensors["prefix"] = features.prefix_CPD
    draft = file.with_name(f"{file.name}.{os.getpid()}{DRAFT}")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft)
    draft.replace(file)


def _read(file: Path, ref: ImageRef) -> Features:
    try:
        tensors = load_file(file)
        grids = tuple(Grid(*grid) for grid in tensors["grids"].tolist())
        return Features(tensors["tokens"], grids, tensors.get("prefix"))
    except FileNotFoundError as error:
        load_image(ref)  # an image that cannot be read says so itself
        raise ImageError(
            f"image {ref.name} has no features in the cache: it was not there when they were made, or was changed "
            f"since; the next run makes them"
        ) from error
    except (SafetensorError, KeyError, OSError) as error:
        raise ImageError(f"{file} holds no features ({error}): delete it, and the next run makes them again") from error


def _name(identity: bytes, image: DocumentImage, key: str) -> str:
    digest = hashlib.blake2b(identity, digest_size=16)
    digest.update(repr(image.layout.crops[key]).encode())
    name = digest.hexdigest()
    return f"{name[:2]}/{name[2:]}.safetensors"


def _identity(ref: ImageRef) -> bytes:
    """Equal for the same picture, in whatever run: its bytes, its address, or a file as it is now."""
    if ref.data:
        return hashlib.blake2b(ref.data).digest()
    if ref.url:
        return ref.url.encode()
    path = Path(ref.path).resolve()
    try:
        found = path.stat()
    except OSError:  # it is not there; whoever loads it will say so
        return str(path).encode()
    return f"{path}:{ref.span}:{found.st_size}:{found.st_mtime_ns}".encode()


def features_bytes(image: DocumentImage, key: str, spec: EncoderSpec, dtype: torch.dtype) -> int:
    """Room that the features of an image take on disk."""
    crops = image.layout.crops[key]
    tokens = sum(spec.grid(crop.canvas).count + spec.prefix for crop in crops)
    return tokens * spec.width * dtype.itemsize + HEADER_BYTES + 16 * len(crops)


HEADER_BYTES = 256
"""Of a file, at most, beside its tensors."""


def joined(parts: Sequence[Features]) -> Features:
    """Features of several images as one batch."""
    prefixes = [part.prefix_CPD for part in parts if part.prefix_CPD is not None]
    return Features(
        torch.cat([part.tokens_ND for part in parts]),
        tuple(grid for part in parts for grid in part.grids),
        torch.cat(prefixes) if prefixes else None,
    )


def divided(features: Features, crops: Sequence[int]) -> list[Features]:
    """The inverse of `joined`.

    Args:
        features: of a batch.
        crops: of each image.
    """
    parts, first, start = [], 0, 0
    for number in crops:
        grids = features.grids[first : first + number]
        end = start + sum(grid.count for grid in grids)
        prefix = None if features.prefix_CPD is None else features.prefix_CPD[first : first + number]
        parts.append(Features(features.tokens_ND[start:end], grids, prefix))
        first, start = first + number, end
    return parts
