"""Where visual tokens go in padded rows; the packed row's counterpart is made by the data workers."""

import numpy as np
import torch
from torch import Tensor

from beni.data.batch import Placement, memory_starts
from beni.errors import DataError
from beni.interfaces import load
from beni.model.config import BeniConfig
from beni.nn.plan import plan_cross
from beni.types import ImageLayout, Size, VisualTokens


def layouts_of(image_sizes: Tensor, config: BeniConfig) -> list[ImageLayout]:
    """How images of these sizes ([U, 2], width and height) are cut."""
    part = config.part("view")
    view = load("view", part)(part.config)
    specs = config.encoder_specs()
    return [view.layout(Size(width, height), specs) for width, height in image_sizes.tolist()]


def place_padded(
    input_ids: Tensor,
    image_index: Tensor,
    image_at: Tensor,
    visual: VisualTokens,
    image_token: int,
    uses_context: bool,
) -> Placement:
    """Plan a padded batch.

    Args:
        input_ids: [B, T] with `image_token` where visual tokens go.
        image_index: [B, J] which distinct image each row shows, -1 for none.
        image_at: [B, J] where in its row an image's text form starts.
        visual: tokens of the distinct images.
        image_token: the placeholder's id.
        uses_context: whether text reads a visual memory.

    Raises:
        DataError: placeholders and visual tokens differ in number.
    """
    rows, length = input_ids.shape
    starts = memory_starts(visual.counts)
    shown = [[i for i in row if i >= 0] for row in image_index.tolist()]
    at = (input_ids.flatten() == image_token).nonzero()[:, 0]
    source = [np.arange(starts[i], starts[i + 1]) for row in shown for i in row]
    if uses_context and not len(at):
        source = []  # visual tokens are a memory beside the text, and take no places in it
    source_V = torch.from_numpy(np.concatenate(source)) if source else torch.empty(0, dtype=torch.long)
    if len(source_V) != len(at):
        raise DataError(
            f"the batch has {len(at)} places for visual tokens but its images give {len(source_V)}: the processor and "
            f"the model must come from the same folder"
        )
    cross = None
    if uses_context:
        spans = np.zeros((rows * length, 2), dtype=np.int64)
        for row, (images, begins) in enumerate(zip(shown, image_at.tolist(), strict=True)):
            for image, begin in zip(images, begins, strict=False):
                spans[row * length + begin : (row + 1) * length] = starts[image], starts[image + 1]
        cross = plan_cross([(row * length, (row + 1) * length) for row in range(rows)], spans)
    return Placement(at, source_V, cross)
