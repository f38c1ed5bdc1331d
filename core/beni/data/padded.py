"""Documents to a padded batch, for generation: the only place where rows have padding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from beni.data.batch import Pictures, distinct, dummy_document
from beni.data.document import Document


def pad(documents: Sequence[Document], pictures: Pictures, pad_id: int) -> dict[str, Any]:
    """Keyword arguments of the model's `forward` and `generate`.

    Rows are padded on the left, where generation needs it. Every distinct image is loaded and encoded once, however
    many rows show it. A batch without images carries a blank one that nobody sees, so that all processes run the same
    modules.

    Raises:
        ImageError: an image cannot be read.
    """
    length = max(len(document) for document in documents)
    ids = np.full((len(documents), length), pad_id)
    mask = np.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, length - len(document) :] = document.ids
        mask[row, length - len(document) :] = 1
    images = distinct([image for document in documents for image in document.images])
    number = {image.ref.key: index for index, image in enumerate(images)}
    most = max(1, *(len(document.images) for document in documents))
    index, at = np.full((len(documents), most), -1), np.zeros((len(documents), most), dtype=np.int64)
    for row, document in enumerate(documents):
        for column, image in enumerate(document.images):
            index[row, column] = number[image.ref.key]
            at[row, column] = image.at + length - len(document)
    images = images or list(dummy_document(pictures.composer).images)
    for image in images:
        pictures.load(image)
    pixels = pictures.stack(images).pixels
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "pixel_values": pixels if len(pixels) > 1 else next(iter(pixels.values())),
        "image_sizes": torch.tensor([image.layout.size for image in images]),
        "image_index": torch.from_numpy(index),
        "image_at": torch.from_numpy(at),
    }
