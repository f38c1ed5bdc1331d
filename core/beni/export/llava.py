"""`LlavaForConditionalGeneration`: one picture at a time, one tower, two linear layers, visual tokens in the text.

Reference: transformers, models/llava/modeling_llava.py and processing_llava.py.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from beni.data.document import Composer
from beni.errors import ExportError
from beni.export.llavas import llava_model, llava_pictures, llava_processor
from beni.export.target import Preparing, Source, Target, check_in_text, check_one_crop, largest_form
from beni.types import Size

NAME = "llava"
_SQUASHED, _PADDED = 0.002, 0.05
"""How far prepared pictures may differ. Where padding meets the picture, 0.005 is usual, and 0.03 at 32 pixels."""


def to_llava(source: Source) -> PreTrainedModel:
    """The model; the class replaces one placeholder per token of the only crop."""
    check_in_text(source.composer, NAME)
    check_one_crop(source.composer, NAME)
    if any(isinstance(part, str) for part in largest_form(source.composer)):
        raise ExportError(
            f"there are tokens around or between a picture's visual tokens, which '{NAME}' has not: use "
            f"--fusion.newline none, and neither --fusion.before nor --fusion.after"
        )
    return llava_model(LlavaForConditionalGeneration, NAME, source)


def llava_processors(composer: Composer, tokenizer: PreTrainedTokenizerBase) -> tuple[Preparing, ...]:
    """One that squashes pictures, and one that pads them."""

    def preparing(pad: bool, tolerance: float) -> Preparing:
        images = llava_pictures(LlavaImageProcessor, NAME, composer, do_pad=pad)
        return Preparing(llava_processor(LlavaProcessor, NAME, composer, tokenizer, images), tolerance)

    return preparing(False, _SQUASHED), preparing(True, _PADDED)


def llava_visual(crops: Sequence[Float[Tensor, "_ 3 height width"]], sizes: Sequence[Size]) -> Mapping[str, Tensor]:
    """Pictures as a batch."""
    return {"pixel_values": torch.cat(list(crops))}


LLAVA = Target(NAME, to_llava, llava_processors, llava_visual, view="--view single")
