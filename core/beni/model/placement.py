"""Where visual tokens go in padded rows; the packed row's counterpart is made by the data workers."""

import numpy as np
from torch import Tensor

from beni.data.batch import Placement, memory_starts, place
from beni.data.memory import Reader, plan_memory
from beni.errors import DataError
from beni.interfaces import Reads, load
from beni.model.config import BeniConfig
from beni.types import ImageLayout, Size, VisualTokens


def layouts_of(image_sizes: Tensor, config: BeniConfig) -> list[ImageLayout]:
    """How images of these sizes ([U, 2], width and height) are cut."""
    part = config.part("view")
    view = load("view", part)(part.config)
    specs = config.encoder_specs()
    return [view.layout(Size(width, height), specs) for width, height in image_sizes.tolist()]


def place_padded(
    input_ids: Tensor,
    image_ids: Tensor,
    image_starts: Tensor,
    visual: VisualTokens,
    image_token: int,
    reads: Reads,
) -> Placement:
    """Plan a padded batch.

    Args:
        input_ids: [B, T] with `image_token` where visual tokens go.
        image_ids: [U] names of the distinct images.
        image_starts: [B, S] the name of the image whose text form starts there, 0 elsewhere; S <= T.
        visual: tokens of the distinct images.
        image_token: the placeholder's id.
        reads: which images a text position reads in the visual memory.

    Raises:
        DataError: placeholders and visual tokens differ in number, or a row shows an image that is not there.
    """
    rows, length = input_ids.shape
    starts = memory_starts(visual.counts)
    number = {image: index for index, image in enumerate(image_ids.tolist())}
    shown: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    for row, start in image_starts.nonzero().tolist():
        index = number.get(int(image_starts[row, start]))
        if index is None:
            raise DataError(f"row {row} of the batch shows an image that is not among its pixel_values")
        shown[row].append((row * length + start, index))
    at = (input_ids.flatten() == image_token).nonzero()[:, 0].cpu().numpy()
    source = [np.arange(starts[i], starts[i + 1]) for row in shown for _, i in row]
    if reads != "nothing" and not len(at):
        source = []  # visual tokens are a memory beside the text, and take no places in it
    source_V = np.concatenate(source) if source else np.empty(0, dtype=np.int64)
    if len(source_V) != len(at):
        raise DataError(
            f"the batch has {len(at)} places for visual tokens but its images give {len(source_V)}: the processor and "
            f"the model must come from the same folder"
        )
    ranges = [(row * length, (row + 1) * length) for row in range(rows)]
    readers = [Reader(*range_, tuple(images)) for range_, images in zip(ranges, shown, strict=True)]
    return place(at, source_V, plan_memory(readers, ranges, starts, rows * length, reads))
