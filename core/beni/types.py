"""The values that travel between the parts: layouts, features, visual tokens.

Legend for shape suffixes, used everywhere in beni:
    B rows of a padded batch   T positions of a row       D channels          V visual tokens of a batch
    C crops of a batch         N grid tokens of all crops P prefix tokens     I images of a batch
    M visual memory (xattn)    H heads                    L longest tree of a bucket
    R encoder tokens under one visual token
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.export import register_dataclass


class Size(NamedTuple):
    """A width and a height in pixels (the order of PIL)."""

    width: int
    height: int


class Grid(NamedTuple):
    """Rows and columns of a map of tokens."""

    rows: int
    cols: int

    @property
    def count(self) -> int:  # type: ignore[override]
        """Number of tokens; hides the tuple's method, which nobody needs here."""
        return self.rows * self.cols

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


def count_of(shape: Grid | int) -> int:
    """Tokens of a grid, or of a number of tokens that have no place."""
    return shape.count if isinstance(shape, Grid) else shape


class Box(NamedTuple):
    """A rectangle, in pixels: left and top inclusive, right and bottom exclusive; may be fractional."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def of(cls, size: Size) -> "Box":
        """The whole of an image."""
        return cls(0.0, 0.0, float(size.width), float(size.height))


@dataclass(frozen=True, slots=True)
class Crop:
    """One input of an encoder: a box of the source drawn into a rectangle of a canvas.

    Every view (squash, pad, tiles, pyramid) is a choice of such crops: drawing is done once, in `beni.data.images`.
    """

    canvas: Size
    """Pixels of the encoder's input."""
    box: Box
    """The part of the source image that is drawn."""
    valid: Box
    """Where on the canvas it is drawn; outside is padding. Empty: all is padding."""
    level: int = 0
    """Level of a pyramid, or 0."""
    cell: tuple[int, int] = (0, 0)
    """Row and column in the level's tile grid."""
    background: tuple[int, int, int] | None = None
    """Colour of the padding; None: the encoder's mean colour, which it sees as zero."""


@dataclass(frozen=True, slots=True)
class Merge:
    """The last `tiles.count` crops of an image are tiles of one picture, row by row: their tokens become one map.

    Plain values, applied to whatever grid a connector makes of a tile, by a reader of shapes (`shape`) and by the one
    that has the tokens (`beni.nn.merge`).

    References: haotian-liu/LLaVA, llava/model/llava_arch.py (unpad_image, prepare_inputs_labels_for_multimodal) and
    its `anyres_max_N` in LLaVA-VL/LLaVA-NeXT.
    """

    tiles: Grid
    """Rows and columns of tiles."""
    unpad: bool = False
    """Whether rows or columns that show nothing but padding around the centred image are left out."""
    shrink_to: int = 0
    """A map of clearly more tokens than this many tiles have is shrunk to that many; 0: never."""
    newline: bool = False
    """Whether each row of the map ends in a newline where visual tokens stand in the text."""

    def kept(self, tile: Grid, size: Size) -> tuple[range, range]:
        """Rows and columns of the whole map that are kept, of an image of this size in tiles of this grid.

        The reference's rule: the padding is half of what the image leaves over, rounded down, on either side. Where
        that would keep nothing of an image thinner than a token, the tokens that show it are kept here.
        """
        rows, cols = self.tiles.rows * tile.rows, self.tiles.cols * tile.cols
        if not self.unpad:
            return range(rows), range(cols)
        if size.width * rows > cols * size.height:
            rest = (rows - max(1, size.height * cols // size.width)) // 2
            return range(rest, rows - rest), range(cols)
        rest = (cols - max(1, size.width * rows // size.height)) // 2
        return range(rows), range(rest, cols - rest)

    def shape(self, tile: Grid, size: Size) -> Grid:
        """The map that tiles of this grid become."""
        rows, cols = map(len, self.kept(tile, size))
        factor = math.sqrt(rows * cols / (self.shrink_to * tile.count)) if self.shrink_to else 0.0
        if factor <= SHRUNK_FROM:
            return Grid(rows, cols)
        return Grid(max(1, int(rows // factor)), max(1, int(cols // factor)))


SHRUNK_FROM = 1.1
"""A merged map is shrunk if its sides are more than this many times too long."""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """How one image is cut, a pure function of its size: known before a pixel is decoded.

    `crops` holds, for each encoder key, the crops in the order in which their tokens are laid out; `merge` says which
    of them are put together to one map; without it every crop is a block of its own.
    """

    size: Size
    crops: Mapping[str, tuple[Crop, ...]]
    merge: Merge | None = None


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What everything outside an encoder must know of it: plain values, resolved once, stored in the model's config."""

    size: Size
    """Native input in pixels."""
    stride: int
    """Pixels per token along a side."""
    width: int
    """Channels of a token."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    prefix: int = 0
    """Tokens in front of the grid (CLS, registers)."""
    resample: str = "bicubic"
    """Filter used to resize images: nearest, bilinear, bicubic or lanczos."""
    partial: bool = False
    """Whether an incomplete stride at the edge makes a token (convolutional nets with padding) or not (ViTs)."""
    levels: int = 1
    """Layers that the channels come from, each an equal share of them; 1 also where layers differ in width."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """What the encoder needs to be built again where its source cannot be reached; plain values."""

    def grid(self, size: Size) -> Grid:
        """Tokens that an input of this size becomes."""
        extra = self.stride - 1 if self.partial else 0
        return Grid((size.height + extra) // self.stride, (size.width + extra) // self.stride)

    def level(self) -> "EncoderSpec":
        """The same encoder as somebody sees it who looks at one layer at a time."""
        return replace(self, width=self.width // self.levels, levels=1)


@dataclass(frozen=True)
class Features:
    """What an encoder returns for all crops of a batch; grids may differ from crop to crop, nothing is padded."""

    tokens_ND: Float[Tensor, "N D"]
    """Grid tokens of all crops, crop after crop, row-major."""
    grids: tuple[Grid, ...]
    """One grid per crop; their counts sum to N."""
    prefix_CPD: Float[Tensor, "C P D"] | None = None
    """CLS and register tokens, or None."""

    def to(self, device: torch.device) -> "Features":
        """The same on a device."""
        prefix_CPD = self.prefix_CPD
        return Features(
            self.tokens_ND.to(device, non_blocking=True),
            self.grids,
            None if prefix_CPD is None else prefix_CPD.to(device, non_blocking=True),
        )

    def split(self, levels: int) -> tuple["Features", ...]:
        """What each of so many layers gave, where they were joined by channel."""
        tokens = self.tokens_ND.chunk(levels, dim=-1)
        prefixes = (None,) * levels if self.prefix_CPD is None else self.prefix_CPD.chunk(levels, dim=-1)
        return tuple(Features(x_ND, self.grids, prefix) for x_ND, prefix in zip(tokens, prefixes, strict=True))

    def runs(self) -> list[tuple[Grid, Float[Tensor, "C N D"]]]:
        """Consecutive crops of one grid, batched: the grid, and [crops, tokens of each, D]."""
        runs = [(grid, len(list(run))) for grid, run in groupby(self.grids)]
        parts = self.tokens_ND.split([grid.count * crops for grid, crops in runs])
        return [(grid, part.view(crops, grid.count, -1)) for part, (grid, crops) in zip(parts, runs, strict=True)]


@dataclass(frozen=True)
class Windows:
    """What lies under each visual token in the maps of the encoders, for a fusion that reads it inside the LLM."""

    keys: tuple[Float[Tensor, "V _ C"], ...]
    """For each encoder the R tokens of its map under every visual token."""
    visible: tuple[Bool[Tensor, "V _"], ...]
    """Which of them are picture, not padding."""
    context_VC: Float[Tensor, "V C"]
    """A summary of the image that the visual token belongs to."""
    under: tuple[tuple[tuple[Grid, ...], Int[Tensor, "V _"]], ...] | None = None
    """For each encoder the grid of each crop's map, and the numbers of the R tokens in `keys` among the tokens of all
    crops: what is needed to show where they are, and there only while somebody listens (`beni.nn.looks`)."""

    def at(self, index_V: Int[Tensor, " V"]) -> "Windows":
        """Those of some visual tokens."""
        return Windows(
            tuple(keys[index_V] for keys in self.keys),
            tuple(v[index_V] for v in self.visible),
            self.context_VC[index_V],
            self.under and tuple((grids, number_VR[index_V]) for grids, number_VR in self.under),
        )


@dataclass(frozen=True)
class VisualTokens:
    """What a connector returns: the visual tokens of a batch in image order."""

    tokens_VD: Float[Tensor, "V D"]
    counts: tuple[tuple[int, ...], ...]
    """For each image, the tokens of each of its blocks (a crop, or a merged map)."""
    windows: Windows | None = None
    """From a connector that keeps the encoders' maps."""
    levels: tuple[Float[Tensor, "V D"], ...] = ()
    """The same tokens as earlier layers of the encoders give them, for a fusion that adds them inside the LLM."""


# What modules hand on is opened by FSDP, which finds the tensors in it as pytree does in PyTorch 2.11: parameters
# are gathered for a backward pass only where it found what they made.
for _opened in (Features, Windows, VisualTokens):
    register_dataclass(_opened)


class Segment(NamedTuple):
    """A stretch of a packed row. It sees itself causally and its ancestors wholly, and nothing else.

    `parent` is the index of another segment of the row, or -1: with -1 everywhere this is plain packing; several
    questions about one image are children of the segment that holds the image.
    """

    start: int
    end: int
    parent: int = -1

    @property
    def length(self) -> int:
        return self.end - self.start
