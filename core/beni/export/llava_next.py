"""`LlavaNextForConditionalGeneration`: an overview, then tiles as one map whose rows end in a learned newline.

What are text tokens behind the rows in beni are visual tokens in the class, with the vector `image_newline`.

Reference: transformers, models/llava_next/modeling_llava_next.py (pack_image_features) and processing_llava_next.py.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from beni.data.document import Composer
from beni.errors import ExportError
from beni.export.llavas import llava_model, llava_pictures, llava_processor
from beni.export.target import Preparing, Source, Target, check_in_text, largest_form, only_encoder
from beni.interfaces import spell_blocks
from beni.sample import NEWLINE_MARK
from beni.types import Size

NAME = "llava_next"
_TILES = 0.002
"""How far prepared pictures may differ; rounding in resampling gives 0.00003."""


def to_llava_next(source: Source) -> PreTrainedModel:
    """The model, its newline taken out of the text."""
    composer = source.composer
    spec = only_encoder(composer, NAME)
    check_in_text(composer, NAME)
    options = composer.view.native(NAME, spec)
    layout = composer.view.bound(composer.encoders)
    shapes = composer.connector.shapes(layout, composer.encoders)
    if largest_form(composer) != spell_blocks(layout, shapes):
        raise ExportError(
            f"there are tokens around or between a picture's visual tokens besides newlines behind the rows of its "
            f"tiles, which '{NAME}' has not: use --fusion.newline none, and neither --fusion.before nor --fusion.after"
        )
    native = llava_model(LlavaNextForConditionalGeneration, NAME, source, **options)
    side = native.config.vision_config.image_size
    if (side, side) != tuple(spec.size):
        raise ExportError(
            f"the encoder sees tiles of {spec.size.width}×{spec.size.height} pixels, and '{NAME}' counts in the {side} "
            f"of its configuration: train with --encoder.size 0"
        )
    newline = source.tokenizer.convert_tokens_to_ids(NEWLINE_MARK)
    native.model.image_newline.data.copy_(source.tables.embedding_ND[newline])
    return native


def llava_next_processors(composer: Composer, tokenizer: PreTrainedTokenizerBase) -> tuple[Preparing, ...]:
    """The one that there is."""
    options = composer.view.native(NAME, only_encoder(composer, NAME))
    images = llava_pictures(LlavaNextImageProcessor, NAME, composer, **options)
    return (Preparing(llava_processor(LlavaNextProcessor, NAME, composer, tokenizer, images), _TILES),)


def llava_next_visual(
    crops: Sequence[Float[Tensor, "_ 3 height width"]], sizes: Sequence[Size]
) -> Mapping[str, Tensor]:
    """Crops of all pictures one after another, and the pictures' heights and widths."""
    return {"pixel_values": torch.cat(list(crops)), "image_sizes": torch.tensor([[h, w] for w, h in sizes])}


LLAVA_NEXT = Target(
    NAME,
    to_llava_next,
    llava_next_processors,
    llava_next_visual,
    view="--view anyres --view.background black",
    visual_tokens=(NEWLINE_MARK,),
)
