"""What LLaVA and LLaVA-NeXT have in common in Transformers: a tower, two linear layers, visual tokens in the text.

Reference: transformers, models/llava and models/llava_next (modeling, processing).
"""

from typing import Any

from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from beni.data.document import Composer
from beni.errors import ExportError
from beni.export.chat import with_images
from beni.export.foreign import foreign
from beni.export.holding import Language, holding
from beni.export.target import Source, only_encoder
from beni.interfaces import NativeTower
from beni.sample import IMAGE_MARK
from beni.types import EncoderSpec


def llava_model(native_class: type[PreTrainedModel], to: str, source: Source, **options: Any) -> PreTrainedModel:
    """The parts as a class of that kind.

    Args:
        native_class: the class.
        to: name of its family.
        source: the saved model.
        options: further fields of the class's configuration.

    Raises:
        ExportError: a part computes something else than the class's, or the class cannot hold it.
    """
    spec = only_encoder(source.composer, to)
    tower = source.tower()
    projector = source.model.connector.native(to)
    language = Language.of(source)
    with foreign(native_class.__name__, "hold"):
        config = native_class.config_class(
            vision_config=tower.config,
            text_config=language.config(),
            image_token_index=source.tokenizer.convert_tokens_to_ids(IMAGE_MARK),
            image_seq_length=spec.grid(spec.size).count,
            vision_feature_layer=_layers(tower, to),
            vision_feature_select_strategy=_strategy(spec, to),
            tie_word_embeddings=language.tied,
            **projector.options,
            **options,
        )
        states = {
            "model.vision_tower": tower.state,
            "model.multi_modal_projector": projector.state,
            "model.language_model": language.state,
            "lm_head": language.output,
        }
        return holding(native_class, config, states)


def llava_pictures(image_class: type[BaseImageProcessor], to: str, composer: Composer, **options: Any) -> Any:
    """An image processor of a class of that kind.

    Args:
        image_class: the class.
        to: name of its family.
        composer: what feeds the model.
        options: further fields of it.
    """
    spec = only_encoder(composer, to)
    side: dict[str, int] = {"height": spec.size.height, "width": spec.size.width}
    return image_class(
        size=side,
        crop_size=side,  # cuts nothing away; servers count placeholders by it
        resample=Image.Resampling[spec.resample.upper()],
        image_mean=list(spec.mean),
        image_std=list(spec.std),
        **options,
    )


def llava_processor(
    processor_class: type[ProcessorMixin], to: str, composer: Composer, tokenizer: PreTrainedTokenizerBase, images: Any
) -> Any:
    """A processor of a class of that kind around an image processor.

    Raises:
        ExportError: the encoder has tokens that the class does not know.
    """
    spec = only_encoder(composer, to)
    return processor_class(
        images,
        tokenizer,
        patch_size=spec.stride,
        vision_feature_select_strategy=_strategy(spec, to),
        num_additional_image_tokens=spec.prefix,
        image_token=IMAGE_MARK,
        chat_template=with_images(composer.template.jinja),
    )


def _layers(tower: NativeTower, to: str) -> int | list[int]:
    if not tower.layers:
        raise ExportError(
            f"the encoder is read at the model's last hidden state, behind the final norm, and '{to}' reads the states "
            f"between layers: train with --encoder.layers -2"
        )
    return tower.layers[0] if len(tower.layers) == 1 else list(tower.layers)


def _strategy(spec: EncoderSpec, to: str) -> str:
    if spec.prefix > 1:
        raise ExportError(
            f"the encoder has {spec.prefix} tokens in front of its grid (CLS, registers), and '{to}' leaves out one"
        )
    return "default" if spec.prefix else "full"
