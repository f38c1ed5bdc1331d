"""`LlavaForConditionalGeneration`: one picture at a time, one tower, two linear layers, visual tokens in the text.

Reference: transformers, models/llava/modeling_llava.py and processing_llava.py.
"""

from PIL import Image
from transformers import (
    AutoConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from beni.data.document import Composer
from beni.errors import ExportError
from beni.export.chat import with_images
from beni.export.foreign import foreign
from beni.export.verify import Preparing
from beni.export.vocabulary import Tables
from beni.interfaces import NativeTower
from beni.model.modeling import BeniForConditionalGeneration
from beni.sample import IMAGE_MARK
from beni.types import EncoderSpec

NAME = "llava"
_TABLE = "embed_tokens"
"""Of the language model, if the class is to tie the output layer to it; under another name both are written."""
_SQUASHED, _PADDED = 0.002, 0.05
"""How far prepared pictures may differ. Where padding meets the picture, 0.005 is usual, and 0.03 at 32 pixels."""


def to_llava(
    model: BeniForConditionalGeneration, composer: Composer, tokenizer: PreTrainedTokenizerBase, tables: Tables
) -> PreTrainedModel:
    """The same model as that class.

    Args:
        model: the saved model.
        composer: what feeds it.
        tokenizer: the language model's, with a token for images.
        tables: of the language model, with a row for each token.

    Raises:
        ExportError: the class computes something else, or cannot hold the parts; says what.
    """
    spec = _only_encoder(composer)
    _check_layout(composer)
    tower = next(iter(model.encoders.values())).native()  # type: ignore[operator]
    projector = model.connector.native(NAME)
    base, table = model.llm.base_model, model.get_input_embeddings()
    embedding = next(name for name, module in base.named_modules() if module is table)
    tied = model.config.tie_word_embeddings and embedding == _TABLE
    text = model.llm.config.to_dict() | {"vocab_size": len(tables.embedding_ND), "tie_word_embeddings": tied}
    with foreign(LlavaForConditionalGeneration.__name__, "hold"):
        config = LlavaConfig(
            vision_config=tower.config,
            text_config=AutoConfig.for_model(**text),
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_MARK),
            image_seq_length=spec.grid(spec.size).count,
            vision_feature_layer=_layers(tower),
            vision_feature_select_strategy=_strategy(spec),
            tie_word_embeddings=tied,
            **projector.options,
        )
        with no_init_weights():
            native = LlavaForConditionalGeneration(config).float()  # a tower's configuration may ask for half of that
        native.model.vision_tower.load_state_dict(tower.state)
        native.model.multi_modal_projector.load_state_dict(projector.state)
        native.model.language_model.load_state_dict(base.state_dict() | {f"{embedding}.weight": tables.embedding_ND})
        native.lm_head.load_state_dict({"weight": tables.output_ND})
        native.tie_weights()  # without initialisation nobody has
    return native


def llava_processors(composer: Composer, tokenizer: PreTrainedTokenizerBase) -> tuple[Preparing, ...]:
    """What prepares text and pictures for it: one that squashes pictures, and one that pads them.

    Raises:
        ExportError: the encoder has tokens that the class does not know.
    """
    spec = _only_encoder(composer)
    side: dict[str, int] = {"height": spec.size.height, "width": spec.size.width}

    def processor(pad: bool) -> LlavaProcessor:
        images = LlavaImageProcessor(
            do_pad=pad,
            size=side,
            crop_size=side,  # cuts nothing away; servers count placeholders by it
            resample=Image.Resampling[spec.resample.upper()],
            image_mean=list(spec.mean),
            image_std=list(spec.std),
        )
        return LlavaProcessor(
            images,
            tokenizer,
            patch_size=spec.stride,
            vision_feature_select_strategy=_strategy(spec),
            num_additional_image_tokens=spec.prefix,
            image_token=IMAGE_MARK,
            chat_template=with_images(composer.template.jinja),
        )

    return Preparing(processor(False), _SQUASHED), Preparing(processor(True), _PADDED)


def _only_encoder(composer: Composer) -> EncoderSpec:
    if len(composer.encoders) > 1:
        raise ExportError(f"the model has {len(composer.encoders)} encoders, '{NAME}' has one")
    return next(iter(composer.encoders.values()))


def _check_layout(composer: Composer) -> None:
    """The class replaces one placeholder per token of the only crop, and does nothing inside the language model."""
    if composer.fusion.uses_context:
        raise ExportError(
            f"the fusion works between the layers of the language model, and '{NAME}' puts visual tokens in the text: "
            f"only --fusion inline does the same"
        )
    layout = composer.view.bound(composer.encoders)
    crops = len(next(iter(layout.crops.values())))
    if crops > 1:
        raise ExportError(f"the view cuts a picture into up to {crops} crops, '{NAME}' sees it once: use --view single")
    shapes = composer.connector.shapes(layout, composer.encoders)
    if any(isinstance(part, str) for part in composer.fusion.spell(layout, shapes)):
        raise ExportError(
            f"there are tokens between a picture's visual tokens, which '{NAME}' has not: use --fusion.newline none"
        )


def _layers(tower: NativeTower) -> int | list[int]:
    return tower.layers[0] if len(tower.layers) == 1 else list(tower.layers)


def _strategy(spec: EncoderSpec) -> str:
    if spec.prefix > 1:
        raise ExportError(
            f"the encoder has {spec.prefix} tokens in front of its grid (CLS, registers), and '{NAME}' leaves out one"
        )
    return "default" if spec.prefix else "full"
