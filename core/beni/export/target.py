"""What a family of native classes is to an export: a file for each, that fills in a `Target`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from beni.data.document import Composer
from beni.errors import ExportError
from beni.export.vocabulary import Tables
from beni.interfaces import NativeTower
from beni.model.modeling import BeniForConditionalGeneration
from beni.types import EncoderSpec, Size


class Source(NamedTuple):
    """The saved model that is exported."""

    model: BeniForConditionalGeneration
    composer: Composer
    """What feeds it."""
    tokenizer: PreTrainedTokenizerBase
    """The language model's, with a token for images."""
    tables: Tables
    """Of the language model, with a row for each token."""

    def tower(self) -> NativeTower:
        """The only encoder, as a vision model of Transformers.

        Raises:
            ExportError: it is none, or is read in a way that the native classes have not.
        """
        [encoder] = self.model.encoders.values()
        return encoder.native()  # type: ignore[operator]


class Preparing(NamedTuple):
    """What prepares text and pictures for a native class."""

    processor: Any
    tolerance: float
    """Largest mean difference of pictures that is resampling, as a part of the way from black to white."""


class Target(NamedTuple):
    """A family of native classes, for one model."""

    name: str
    """What `beni export --to` calls it."""
    model: Callable[[Source], PreTrainedModel]
    """The same model as that class.

    Raises:
        ExportError: the class computes something else, or cannot hold the parts; says what.
    """
    processors: Callable[[Composer, PreTrainedTokenizerBase], tuple[Preparing, ...]]
    """Processors to choose from: that one is taken whose pictures are nearest to the view's."""
    visual: Callable[[Sequence[Float[Tensor, "_ 3 height width"]], Sequence[Size]], Mapping[str, Tensor]]
    """Arguments of the class for the crops of each picture of a conversation, and the pictures' sizes."""
    view: str
    """Options with which the view prepares pictures as the class's processor does."""
    visual_tokens: tuple[str, ...] = ()
    """Tokens of beni's that are visual tokens there."""
    tokens: tuple[str, ...] = ()
    """Tokens that its processor adds to a tokenizer."""


def only_encoder(composer: Composer, to: str) -> EncoderSpec:
    """The encoder, for a class that has one.

    Raises:
        ExportError: there are several.
    """
    if len(composer.encoders) > 1:
        raise ExportError(f"the model has {len(composer.encoders)} encoders, '{to}' has one")
    return next(iter(composer.encoders.values()))


def check_in_text(composer: Composer, to: str) -> None:
    """Refuse a fusion that does anything inside the language model.

    Raises:
        ExportError: it does.
    """
    if composer.fusion.uses_context:
        raise ExportError(
            f"the fusion works between the layers of the language model, and '{to}' puts visual tokens in the text: "
            f"only --fusion inline does the same"
        )


def check_one_crop(composer: Composer, to: str) -> None:
    """Refuse a view that cuts.

    Raises:
        ExportError: it makes several crops.
    """
    crops = len(next(iter(composer.view.bound(composer.encoders).crops.values())))
    if crops > 1:
        raise ExportError(f"the view cuts a picture into up to {crops} crops, '{to}' sees it once: use --view single")


def largest_form(composer: Composer) -> list[str | int]:
    """The form in the text of the view's largest picture: strings, and numbers of visual tokens."""
    layout = composer.view.bound(composer.encoders)
    return composer.fusion.spell(layout, composer.connector.shapes(layout, composer.encoders))
