"""`sample.html`: the first row of a run as the model gets it, its pictures and its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from beni.data.batch import PackedBatch, distinct
from beni.data.document import Composer, DocumentImage
from beni.data.images import load_image
from beni.data.loader import Rows
from beni.report.pictures import Picture, embed
from beni.report.render import write_page
from beni.report.tokens import newline_id, segment_tokens, texts_of, visible
from beni.sample import Sample
from beni.types import Box, EncoderSpec, Size

MOST_IMAGES = 4
MOST_CROPS = 16
"""Crops shown of one image and encoder."""
MOST_NAME = 32
"""Characters shown of an image's path or URL: the last ones."""
MOST_TOKENS = 600
"""Tokens shown; a run of visual tokens counts as one."""


def write_sample(path: Path, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a page that shows row 0 of step 0 of epoch 0: pictures with their crops, tokens with their labels.

    Args:
        path: the HTML file; its folder exists.
        rows: the training data.
        tokenizer: decodes its ids.
    """
    batch = rows[(0, 0, 0)]
    trees = _trees(rows, batch)
    images = [image for tree in trees for image in rows.composer.compose(tree[0]).images]  # which the tree shares
    shown = distinct(images)[:MOST_IMAGES]
    starts = _starts(batch, images, rows.composer)
    segments, hidden = _segments(batch, rows.composer.image_token, starts, tokenizer, _notes(trees))
    values = {
        "stats": batch.stats,
        "segment_count": len(batch.segments),
        "image_count": len(distinct(images)),
        "pictures": [_source(rows, batch, number, image) for number, image in enumerate(shown)],
        "segments": segments,
        "hidden": hidden,
        "augmented": bool(rows.augment),
    }
    write_page(path, "sample.html.jinja", values)


@dataclass(frozen=True, slots=True)
class CropView:
    """One encoder input."""

    label: str
    """Level, and row and column in the view's tile grid."""
    level: int
    box: Box
    """What it shows of the source, in pixels."""
    picture: Picture
    """As the encoder gets it."""


@dataclass(frozen=True, slots=True)
class EncoderView:
    """What one encoder gets of an image."""

    key: str
    canvas: Size
    crops: tuple[CropView, ...]
    hidden: int
    """Crops not shown."""


@dataclass(frozen=True, slots=True)
class SourceView:
    """One image of the row."""

    name: str
    size: Size
    picture: Picture
    visual_tokens: int
    encoders: tuple[EncoderView, ...]


@dataclass(frozen=True, slots=True)
class Chip:
    """One token, or one image's run of them."""

    at: int
    text: str
    id: int
    placeholders: int
    """Positions that an image takes, or a row of its; 0 for text."""
    rows: int
    """Rows that an image takes, each of which ends in `text`; 0 where there is nothing at their ends."""
    target: bool


@dataclass(frozen=True, slots=True)
class SegmentView:
    """One segment of the strip."""

    index: int
    parent: int
    dummy: bool
    note: str
    """What is said of its source: a template, a weight in the loss."""
    hue: int
    """Degrees on the colour wheel."""
    chips: tuple[Chip, ...]


def _trees(rows: Rows, batch: PackedBatch) -> list[list[Sample]]:
    """The samples of the row's trees, without those that could not be read."""
    unreadable = {name for name, _ in batch.stats.bad}
    trees = [[rows.sources[member.source][member.index] for member in tree] for tree in rows.plan.step(0, 0)[0]]
    readable = [[sample for sample in tree if sample.id not in unreadable] for tree in trees]
    return [tree for tree in readable if tree]


def _notes(trees: Sequence[Sequence[Sample]]) -> list[str]:
    """One per segment: of a tree of several samples, the first is the head that they share."""
    notes: list[str] = []
    for tree in trees:
        notes += [""] * (len(tree) > 1)
        for sample in tree:
            template = [f"template {sample.template}"] if sample.template else []
            weight = [f"loss weight {sample.loss_weight:g}"] if sample.loss_weight != 1 else []
            notes.append(", ".join(template + weight))
    return notes


def _starts(batch: PackedBatch, images: Sequence[DocumentImage], composer: Composer) -> set[int]:
    """Positions at which an image's placeholders begin, or those of its merged map."""
    at = np.flatnonzero(batch.ids_T.numpy() == composer.image_token).tolist()
    sizes: list[int] = []
    for image in images:
        size = composer.spell(image.layout, image.shapes).count(composer.image_token)
        merged = image.counts[-1] if image.layout.merge is not None and size == sum(image.counts) else 0
        sizes += [size - merged, merged]
    return {at[start] for start in accumulate(sizes, initial=0) if start < len(at)}


def _source(rows: Rows, batch: PackedBatch, number: int, image: DocumentImage) -> SourceView:
    picture = load_image(image.ref)
    composer = rows.composer
    size = Size(*picture.size)
    layout = image.layout if composer.needs_size else composer.view.layout(size, composer.encoders)
    encoders = []
    for key, spec in composer.encoders.items():
        crops = layout.crops[key]
        first = sum(len(before.crops[key]) for before in batch.visual.layouts[:number])
        views = tuple(
            CropView(
                f"{crop.level}/{crop.cell[0]},{crop.cell[1]}",
                crop.level,
                crop.box,
                embed(_seen(batch.visual.pixels[key][first + i], spec)),
            )
            for i, crop in enumerate(crops[:MOST_CROPS])
        )
        encoders.append(EncoderView(key, crops[0].canvas, views, len(crops) - len(views)))
    name = image.ref.name
    name = name if len(name) <= MOST_NAME else f"…{name[-MOST_NAME:]}"
    return SourceView(name, size, embed(picture, longest=512), sum(image.counts), tuple(encoders))


def _seen(pixels: Float[Tensor, "3 height width"], spec: EncoderSpec) -> Image.Image:
    """An encoder's input made visible: the normalisation undone."""
    mean, std = (np.array(value, dtype=np.float32) for value in (spec.mean, spec.std))
    values = pixels.permute(1, 2, 0).numpy() * std + mean
    return Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))


def _segments(
    batch: PackedBatch,
    image_token: int,
    starts: set[int],
    tokenizer: PreTrainedTokenizerBase,
    notes: Sequence[str],
) -> tuple[list[SegmentView], Mapping[str, int]]:
    """The beginning of the strip, and how much of it is not shown."""
    views: list[SegmentView] = []
    left = MOST_TOKENS
    segments = segment_tokens(batch, image_token, starts, newline_id(tokenizer))
    for segment in segments:
        if left <= 0:
            break
        tokens = segment.tokens[:left]
        left -= len(tokens)
        chips = tuple(
            Chip(token.at, visible(text), token.ids[0], token.cols if token.image else 0, token.rows, token.target)
            for token, text in zip(tokens, texts_of(tokenizer, tokens), strict=True)
        )
        note = "" if segment.dummy else notes[segment.index]
        views.append(SegmentView(segment.index, segment.parent, segment.dummy, note, segment.index * 67 % 360, chips))
    hidden = sum(len(segment.tokens) for segment in segments) - sum(len(view.chips) for view in views)
    return views, {"tokens": hidden, "segments": len(segments) - len(views)}
