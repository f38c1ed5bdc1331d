"""Documents to a padded batch, for generation: the only place where rows have padding."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from beni.data.batch import Pictures, distinct, dummy_document
from beni.data.document import Document
from beni.sample import ImageRef


def pad(documents: Sequence[Document], pictures: Pictures, pad_id: int) -> dict[str, Any]:
    """Keyword arguments of the model's `forward` and `generate`.

    Rows are padded on the left, where generation needs it. Every distinct image is loaded and encoded once, however
    many rows show it. A batch without images carries a blank one that nobody sees, so that all processes run the same
    modules.

    Rows name their images (`image_starts`), they do not count them: batches of one length can be concatenated, tensor
    by tensor, and shorter ones padded with zeros on the left, as transformers' pipelines do.

    Raises:
        ImageError: an image cannot be read, or has no features.
    """
    length = max(len(document) for document in documents)
    ids = np.full((len(documents), length), pad_id)
    mask = np.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, length - len(document) :] = document.ids
        mask[row, length - len(document) :] = 1
    starts = np.zeros_like(ids)
    for row, document in enumerate(documents):
        for image in document.images:
            starts[row, image.at + length - len(document)] = image_id(image.ref)
    images = distinct([image for document in documents for image in document.images])
    images = images or list(dummy_document(pictures.composer).images)
    for image in images:
        pictures.load(image)
    visual = pictures.stack(images)
    pixels = visual.pixels if len(visual.pixels) > 1 else next(iter(visual.pixels.values()), None)
    seen = {"image_features": visual.features} if visual.features else {"pixel_values": pixels}
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        **seen,
        "image_sizes": torch.tensor([image.layout.size for image in images]),
        "image_ids": torch.tensor([image_id(image.ref) for image in images]),
        "image_starts": torch.from_numpy(starts),
    }


def image_id(ref: ImageRef) -> int:
    """A number that is the same for references to the same image, and for no other; never 0."""
    key = ref.key if isinstance(ref.key, bytes) else ref.key.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1 or 1


def shown(inputs: Mapping[str, Any], row: int) -> list[int]:
    """Which of a padded batch's distinct images a row shows, in reading order."""
    number = {image: index for index, image in enumerate(inputs["image_ids"].tolist())}
    return [number[image] for image in inputs["image_starts"][row].tolist() if image]
