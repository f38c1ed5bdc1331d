"""Checks of views: crops are pure functions of the size, lie where they must, and `largest` is the largest."""

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

from PIL import Image

from beni.data.images import draw, mean_colour
from beni.interfaces import ConnectorConfig, View
from beni.model.build import describe, view_of
from beni.testing.model import ModelConformance
from beni.testing.small import ENCODER, configure
from beni.testing.suite import require
from beni.types import Box, Crop, EncoderSpec, Grid, ImageLayout, Size

LENGTHS = (1, 2, 3, 15, 16, 17, 31, 64, 97, 257, 640, 1009)
"""Sides of images, primes among them."""
SIZES = (
    *(Size(width, height) for width in LENGTHS for height in LENGTHS),
    *(Size(1, 5000), Size(5000, 1), Size(4999, 3), Size(7, 4999), Size(6000, 4000), Size(4000, 6000)),
)
ENCODERS = {"main": {**ENCODER}, "large": {**ENCODER, "size": 32, "stem": [8, 8, 16], "blocks": [0, 0, 0]}}
"""Two input sizes, one grid."""
ROUNDING = 1e-3
"""Pixels."""


class ViewConformance(ModelConformance):
    """Subclass it and name your view: `part = "mine"`."""

    kind: ClassVar[str] = "view"

    @cached_property
    def view(self) -> View:
        return view_of(self.chosen())

    @cached_property
    def specs(self) -> dict[str, EncoderSpec]:
        return describe(configure(encoders=ENCODERS).encoders)

    def test_crops_depend_on_the_size_alone(self) -> None:
        again = view_of(self.chosen())
        backwards = {size: again.layout(size, self.specs) for size in reversed(SIZES)}
        for size in SIZES:
            require(
                self.view.layout(size, self.specs) == backwards[size],
                f"an image of {_shown(size)} is cut in two ways: `crops` must be a pure function of the size",
            )

    def test_every_encoder_gets_crops(self) -> None:
        for size in SIZES:
            layout = self.view.layout(size, self.specs)
            require(
                layout.size == size and layout.crops.keys() == self.specs.keys() and all(layout.crops.values()),
                f"an image of {_shown(size)} has no crops for some encoder",
            )
            for key, spec in self.specs.items():
                for crop in layout.crops[key]:
                    canvas = crop.canvas
                    require(
                        spec.grid(canvas).count > 0,
                        f"an image of {_shown(size)} has a canvas of {_shown(canvas)}, less than one token of "
                        f"{spec.stride} pixels",
                    )

    def test_boxes_lie_inside_the_source(self) -> None:
        for size, _, crop in self._all():
            box = crop.box
            if _nothing(box) and _nothing(crop.valid):
                continue
            require(
                -ROUNDING <= box.left < box.right <= size.width + ROUNDING
                and -ROUNDING <= box.top < box.bottom <= size.height + ROUNDING,
                f"an image of {_shown(size)} has a crop of {tuple(box)}: it must lie inside and not be empty",
            )

    def test_valid_lies_on_the_canvas(self) -> None:
        for size, _, crop in self._all():
            valid, canvas = crop.valid, crop.canvas
            if _nothing(valid) and _nothing(crop.box):
                continue
            require(
                -ROUNDING <= valid.left < valid.right <= canvas.width + ROUNDING
                and -ROUNDING <= valid.top < valid.bottom <= canvas.height + ROUNDING,
                f"an image of {_shown(size)} is drawn at {tuple(valid)} of a canvas of {_shown(canvas)}: it must lie "
                f"inside and not be empty",
            )

    def test_crops_can_be_drawn(self) -> None:
        for size, key, crop in self._all():
            if max(size) > 64 and 1 not in size:
                continue
            spec = self.specs[key]
            drawn = draw(Image.new("RGB", size), crop, mean_colour(spec), spec.resample)
            require(drawn.size == tuple(crop.canvas), f"a crop of an image of {_shown(size)} cannot be drawn")

    def test_largest_is_the_largest(self) -> None:
        for key, spec in self.specs.items():
            one = {key: spec}
            most, largest = _tokens(self.view.bound(one), one), _shown(self.view.largest(spec))
            for size in SIZES:
                tokens = _tokens(self.view.layout(size, one), one)
                require(
                    tokens <= most,
                    f"an image of {_shown(size)} has {tokens} tokens, but one of {largest}, which `largest` "
                    f"names, has {most}",
                )

    def test_needs_size_is_honest(self) -> None:
        """Without sizes, images are planned as if all were the largest."""
        if self.view.needs_size:
            return
        bound = self.view.bound(self.specs)
        for size in SIZES:
            layout = self.view.layout(size, self.specs)
            require(
                _places(layout) == _places(bound),
                f"needs_size is False, but an image of {_shown(size)} is cut into other crops than one of "
                f"{_shown(bound.size)}: set needs_size = True",
            )

    def _all(self) -> Iterator[tuple[Size, str, Crop]]:
        for size in SIZES:
            for key, crops in self.view.layout(size, self.specs).crops.items():
                for crop in crops:
                    yield size, key, crop


def _tokens(layout: ImageLayout, specs: dict[str, EncoderSpec]) -> int:
    """Of a connector that keeps the grid."""
    return sum(_Keeps().counts(layout, specs))


def _nothing(box: Box) -> bool:
    """Whether there is nothing to draw: a tile that is all padding has such a box, and such a place to draw it."""
    return box == Box(0, 0, 0, 0)


class _Keeps(ConnectorConfig):
    def out_grid(self, grid: Grid) -> Grid:
        return grid


def _places(layout: ImageLayout) -> dict[str, list[tuple[Size, int, tuple[int, int]]]]:
    """What the counts of a layout depend on."""
    return {key: [(crop.canvas, crop.level, crop.cell) for crop in crops] for key, crops in layout.crops.items()}


def _shown(size: Size) -> str:
    return f"{size.width}x{size.height}"
