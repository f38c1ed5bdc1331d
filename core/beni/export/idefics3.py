"""`Idefics3ForConditionalGeneration` with its splitting of pictures off: SigLIP, a pixel shuffle, one linear layer.

Reference: transformers, models/idefics3 (modeling, processing, image_processing). The processor writes a picture as
`<fake_token_around_image><global-img>`, its visual tokens, and `<fake_token_around_image>` again.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    Idefics3VisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
)

from beni.data.document import Composer
from beni.data.images import mean_colour, to_pixels
from beni.errors import ExportError
from beni.export.chat import with_images
from beni.export.foreign import foreign
from beni.export.holding import Language, holding
from beni.export.target import (
    Preparing,
    Source,
    Target,
    check_in_text,
    check_one_crop,
    largest_form,
    only_encoder,
)
from beni.interfaces import NativeTower
from beni.sample import IMAGE_MARK
from beni.types import EncoderSpec, Size

NAME = "idefics3"
AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
_END = "<end_of_utterance>"
_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""What both configurations of a SigLIP say of it."""
_SQUASHED = 0.002
"""How far prepared pictures may differ."""
_ZERO = 1e-5
"""A level of 255 next to the mean is a thousand times as far from it, and rounding far less."""


def to_idefics3(source: Source) -> PreTrainedModel:
    """The model; the class replaces one placeholder per token of the only crop."""
    composer = source.composer
    spec = only_encoder(composer, NAME)
    check_in_text(composer, NAME)
    check_one_crop(composer, NAME)
    projector = source.model.connector.native(NAME)
    match largest_form(composer):
        case [before, whole, int(), after] if (before, whole, after) == (AROUND, WHOLE, AROUND):
            pass
        case _:
            raise ExportError(
                f"the processor of '{NAME}' writes tokens around a picture: train with --fusion.before "
                f"'{AROUND}' '{WHOLE}' --fusion.after '{AROUND}' --fusion.newline none"
            )
    if to_pixels([Image.new("RGB", spec.size, mean_colour(spec))], spec).abs().max() < _ZERO:
        raise ExportError(
            f"a picture of nothing but the encoder's mean colour becomes zeros, which '{NAME}' takes for no picture: "
            f"use an encoder whose mean is no colour of 256 levels"
        )
    tower = source.tower()
    vision = _vision(tower)
    language = Language.of(source)
    with foreign(Idefics3ForConditionalGeneration.__name__, "hold"):
        config = Idefics3Config(
            vision_config=vision,
            text_config=language.config(),
            image_token_id=source.tokenizer.convert_tokens_to_ids(IMAGE_MARK),
            tie_word_embeddings=language.tied,
            **projector.options,
        )
        states = {
            "model.vision_model": {name: x for name, x in tower.state.items() if not name.startswith("head.")},
            "model.connector": projector.state,
            "model.text_model": language.state,
            "lm_head": language.output,
        }
        native = holding(Idefics3ForConditionalGeneration, config, states)
    _check_places(native, spec)
    return native


def idefics3_processors(composer: Composer, tokenizer: PreTrainedTokenizerBase) -> tuple[Preparing, ...]:
    """One that squashes pictures and does not split them."""
    spec = only_encoder(composer, NAME)
    images = Idefics3ImageProcessor(
        size={"height": spec.size.height, "width": spec.size.width},
        max_image_size={"longest_edge": spec.size.width},
        do_image_splitting=False,
        resample=Image.Resampling[spec.resample.upper()],
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )
    tokens = sum(part for part in largest_form(composer) if isinstance(part, int))
    jinja = with_images(composer.template.jinja)
    return (Preparing(Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=jinja), _SQUASHED),)


def idefics3_visual(crops: Sequence[Float[Tensor, "_ 3 height width"]], sizes: Sequence[Size]) -> Mapping[str, Tensor]:
    """Pictures of the only conversation."""
    return {"pixel_values": torch.cat(list(crops))[None]}


def _vision(tower: NativeTower) -> Idefics3VisionConfig:
    """A SigLIP, read at its end, as the class has it."""
    if tower.layers:
        raise ExportError(
            f"the encoder is read between its layers, and '{NAME}' reads the last hidden state, behind the final norm: "
            f"train with --encoder.layers and nothing behind it"
        )
    if not isinstance(tower.config, SiglipVisionConfig):
        raise ExportError(
            f"the encoder is a {tower.config.model_type} model, and the tower of '{NAME}' is a SigLIP "
            f"(siglip_vision_model)"
        )
    return Idefics3VisionConfig(**{field: getattr(tower.config, field) for field in _FIELDS})


def _check_places(native: PreTrainedModel, spec: EncoderSpec) -> None:
    """The class finds the position of a patch by fractions of the side, whose rounding moves some where a side has 19,
    25, 29, 31, 38, 40 … patches."""
    embeddings = native.model.vision_model.embeddings
    found: list[Tensor] = []
    hook = embeddings.position_embedding.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    grid = spec.grid(spec.size)
    with torch.no_grad():
        embeddings(torch.zeros(1, 3, *spec.size), torch.ones(1, *grid, dtype=torch.bool))
    hook.remove()
    moved = int((found[0] != torch.arange(grid.count)).sum())
    if moved:
        raise ExportError(
            f"'{NAME}' gives {moved} of the {grid} patches of a picture the position of a neighbour, by rounding: use "
            f"an encoder with another number of them (14, 16, 24, 26, 27, 32 and 36 along a side are exact)"
        )


IDEFICS3 = Target(NAME, to_idefics3, idefics3_processors, idefics3_visual, view="--view single", tokens=(AROUND, _END))
