"""A sample as the model will read it: token ids with room for its images, and what it costs.

A document is known without decoding a pixel: layouts and counts are functions of the image's size.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from beni.data.images import image_size
from beni.data.template import Piece, Template
from beni.errors import DataError
from beni.interfaces import ConnectorConfig, FusionConfig, View
from beni.sample import ImageRef, Sample
from beni.types import EncoderSpec, Grid, ImageLayout, count_of

IGNORE = -100
"""The label of a position that is not trained on."""


@dataclass(frozen=True, slots=True)
class DocumentImage:
    """An image of a document: where its text form starts, how it is cut, and its visual tokens."""

    ref: ImageRef
    at: int
    layout: ImageLayout
    shapes: tuple[Grid | int, ...]
    """Of its blocks: a grid, or a number of tokens that have no place."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Visual tokens of each block."""
        return tuple(map(count_of, self.shapes))


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids of one sample; `labels[t]` is `ids[t]` where the token is a target, else `IGNORE`.

    `head` is the length of the beginning that other documents about the same images may share: everything up to the
    last image, if no target lies in it or right behind it; else 0.
    """

    sample: Sample
    ids: np.ndarray
    labels: np.ndarray
    images: tuple[DocumentImage, ...]
    head: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def head_key(self) -> int:
        """Equal for documents whose heads are the same tokens about the same images; 0 without a head."""
        if not self.head:
            return 0
        digest = hashlib.blake2b(self.ids[: self.head].tobytes(), digest_size=8)
        for image in self.images:
            key = image.ref.key
            digest.update(key if isinstance(key, bytes) else key.encode())
        return int.from_bytes(digest.digest(), "little", signed=True) or 1


@dataclass(frozen=True, slots=True)
class Composer:
    """Makes documents: holds what a model's parts say about counts, without the parts themselves.

    Small and picklable, it goes to every data worker and into the processor of a saved model.
    """

    template: Template
    """The run's; samples may name others."""
    view: View
    encoders: Mapping[str, EncoderSpec]
    connector: ConnectorConfig
    fusion: FusionConfig
    image_token: int
    """The id at positions that visual tokens take."""
    max_tokens: int = 0
    """Longest document (0: any); an answer that would be cut away is an error, never a silent zero."""

    def compose(self, sample: Sample, prompt_only: bool = False) -> Document:
        """Tokenize a sample and lay out its images.

        Args:
            sample: the conversation.
            prompt_only: stop where the model has to answer (generation).

        Raises:
            DataError: no target in it, too long, or its source could not make it; the message names the sample.
            ConfigError: its template cannot be used.
            ImageError: the size of an image cannot be read.
        """
        if sample.problem:
            raise DataError(f"sample '{sample.id}': {sample.problem}")
        try:
            pieces = self.template.named(sample.template).encode(sample.turns, prompt_only)
        except DataError as error:
            raise DataError(f"sample '{sample.id}': {error}") from error
        document = self.assemble(sample, pieces)
        name = f"sample '{sample.id}'"
        if not prompt_only and (document.labels[1:] == IGNORE).all():
            raise DataError(f"{name} has nothing to learn: it holds no token to predict")
        if self.max_tokens and len(document) > self.max_tokens:
            raise DataError(f"{name} is {len(document)} tokens long, a row holds {self.max_tokens}: raise --row-tokens")
        return document

    def assemble(self, sample: Sample, pieces: Sequence[Piece]) -> Document:
        """Join token pieces, giving the sample's images their form in the text."""
        ids: list[int] = []
        labels: list[int] = []
        images: list[DocumentImage] = []
        end, target = 0, -1  # behind the last image; the first labelled position
        for piece in pieces:
            if piece.image < 0:
                target = len(ids) if piece.labelled and target < 0 else target
                ids += piece.ids
                labels += piece.ids if piece.labelled else [IGNORE] * len(piece.ids)
                continue
            ref = sample.images[piece.image]
            layout = self.layout(ref)
            shapes = self.connector.shapes(layout, self.encoders)
            images.append(DocumentImage(ref, len(ids), layout, shapes))
            ids += self.spell(layout, shapes)
            end = len(ids)
            labels += [IGNORE] * (end - len(labels))
        shared = bool(images) and end < len(ids) and not 0 <= target <= end
        return Document(
            sample, np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64), tuple(images), end if shared else 0
        )

    def layout(self, ref: ImageRef) -> ImageLayout:
        """How an image is cut; reads the file's header only where the size matters."""
        return self.view.layout(image_size(ref), self.encoders) if self.needs_size else self.view.bound(self.encoders)

    @property
    def needs_size(self) -> bool:
        """Whether crops or counts depend on an image's size."""
        return self.view.needs_size or self.connector.needs_size

    def spell(self, layout: ImageLayout, shapes: tuple[Grid | int, ...]) -> list[int]:
        """The token ids of an image's form in the text."""
        parts = self.fusion.spell(layout, shapes)
        texts = {part for part in parts if isinstance(part, str)}  # a newline may stand behind each of a hundred rows
        written = {text: self.template.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}
        ids: list[int] = []
        for part in parts:
            ids += [self.image_token] * part if isinstance(part, int) else written[part]
        return ids
