"""Chats as Hugging Face writes them, to conversations and images as beni has them."""

import base64
import binascii
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.image_transforms import to_pil_image

from beni.data.images import upright
from beni.errors import DataError
from beni.sample import IMAGE_MARK, ROLES, ImageRef, Turn, image_ref
from beni.types import Size

Picture = Image.Image | str | Path | bytes | np.ndarray | Tensor
"""An image: open, as a path or URL (also `data:`), as the bytes of a file, or as an array of colours."""
Message = Mapping[str, Any]
"""`role`, and `content`: a text, or entries of the types text, image and image_url."""
SOURCES = ("image", "url", "path", "base64")
"""Where an entry of the type image keeps its image."""


def conversation(chat: Sequence[Message]) -> tuple[tuple[Turn, ...], tuple[ImageRef, ...]]:
    """The turns of a chat, and its images in reading order.

    What people say is text: an `<image>` in it stands for nothing.

    Raises:
        DataError: a role or a type of content that models here do not have, or an image that cannot be one.
    """
    turns: list[Turn] = []
    images: list[ImageRef] = []
    for message in chat:
        if (role := ROLES.get(message.get("role", ""))) is None:
            raise DataError(
                f"a message of the role '{message.get('role', '')}': there are {', '.join(dict.fromkeys(ROLES))}"
            )
        content: list[str | int] = []
        for text, image in _entries(message):
            if image is not None:
                content.append(len(images))
                images.append(picture_ref(image))
            elif text:
                content.append(text)
        turns.append(Turn(role, tuple(content)))
    return tuple(turns), tuple(images)


def spelled(chat: Sequence[Message]) -> list[dict[str, str]]:
    """The messages with text for content, in which `<image>` stands for an image."""
    return [
        {"role": message["role"], "content": "".join(text for text, _ in _entries(message, bare=True))}
        for message in chat
    ]


def flat(images: Any) -> list[Any]:
    """Images in order: of one, of several, or of a list for each text."""
    if images is None:
        return []
    return [picture for each in images for picture in flat(each)] if isinstance(images, (list, tuple)) else [images]


def picture_ref(image: Any) -> ImageRef:
    """A reference to an image.

    Args:
        image: a `Picture`.

    Raises:
        DataError: it is nothing that can be an image.
    """
    if isinstance(image, (np.ndarray, Tensor)):
        try:
            image = to_pil_image(image)
        except (ValueError, TypeError) as error:
            raise DataError(f"an array of the shape {tuple(image.shape)} is no image: {error}") from error
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        try:
            picture = upright(image)
        except (OSError, ValueError) as error:
            raise DataError(f"an open image (mode {image.mode}) cannot be used: {error}") from error
        picture.save(file, "tiff")  # uncompressed
        return ImageRef(data=file.getvalue(), size=Size(*picture.size))
    if isinstance(image, bytes):
        return ImageRef(data=image)
    if not isinstance(image, (str, Path)):
        raise DataError(
            f"a {type(image).__name__} is no image: give an open image, a path, a URL, the bytes of a file or an array"
        )
    head, comma, data = str(image).partition(",")
    return ImageRef(data=_decoded(data)) if comma and head.startswith("data:image/") else image_ref(str(image))


def _entries(message: Message, bare: bool = False) -> Iterator[tuple[str, Any]]:
    """(text, image) of each entry; an image's text is its mark.

    Args:
        message: of a chat.
        bare: images may be given elsewhere.
    """
    content = message.get("content") or ""
    if isinstance(content, str):
        yield content, None
        return
    for entry in content:
        if not isinstance(entry, Mapping) or "type" not in entry:
            raise DataError(f"a message has {entry!r} as content: entries are {{type: text | image, …}}")
        if entry["type"] == "text":
            yield str(entry.get("text") or ""), None
        elif entry["type"] in ("image", "image_url"):
            yield IMAGE_MARK, _source(entry, bare)
        else:
            raise DataError(f"a message has content of the type '{entry['type']}': models here read text and images")


def _source(entry: Mapping[str, Any], bare: bool) -> Any:
    if entry["type"] == "image_url":  # {"url": …}, or the URL itself
        where = entry["image_url"]
        return where["url"] if isinstance(where, Mapping) else where
    given = next((name for name in SOURCES if entry.get(name) is not None), None)
    if given is not None:
        return _decoded(entry[given]) if given == "base64" else entry[given]
    if not bare:
        raise DataError(f"an entry of the type image has none: it wants one of {', '.join(SOURCES)}")
    return None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"an image is not valid base64: {error}") from error
