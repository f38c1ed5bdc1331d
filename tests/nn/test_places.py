"""A token's place is where the pixels come from that the encoder sees there: asked of a picture that tells where it is.

Each pixel of the picture has its own coordinates for colours; the mean over a token's patch of a drawn crop is then the
middle of the place that the token has.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beni.config import choose
from beni.data.images import draw
from beni.interfaces import View
from beni.model.build import view_of
from beni.nn.merge import merge_tiles
from beni.nn.places import Place, crop_places
from beni.types import Box, Crop, EncoderSpec, Grid, ImageLayout, Size
from beni_plugins.connectors.mlp import MlpConfig
from beni_plugins.connectors.perceiver import PerceiverConfig
from beni_plugins.connectors.sva import SvaConfig

SPEC = EncoderSpec(Size(64, 64), 16, 8, (0.5,) * 3, (0.5,) * 3, resample="bilinear")
GRID = Grid(4, 4)
PADDING = 255
SIZES = [Size(120, 120), Size(200, 80), Size(60, 170), Size(240, 232)]
VIEWS: dict[str, dict[str, Any]] = {
    "squashed": {"name": "single"},
    "padded": {"name": "single", "fit": "pad"},
    "split": {"name": "split"},
    "split without overview": {"name": "split", "tiles": 3, "overview": False},
    "tiles": {"name": "anyres", "merge": "flat"},
    "merged": {"name": "anyres", "merge": "spatial"},
    "unpadded": {"name": "anyres"},
    "shrunk": {"name": "anyres", "pinpoints": ["2x2", "3x1", "1x3"], "shrink_to": 2},
    "pyramid": {"name": "pyramid", "medium": ["1x2", "2x1"]},
}


def telling(size: Size) -> Image.Image:
    """Red is the column and green the row, as parts of 200; blue is 0, and 255 where there is no picture."""
    x, y = np.meshgrid((np.arange(size.width) + 0.5) / size.width, (np.arange(size.height) + 0.5) / size.height)
    return Image.fromarray(np.stack([200 * x, 200 * y, 0 * x], axis=-1).round().astype(np.uint8))


def told(picture: Image.Image, crop: Crop) -> torch.Tensor:
    """[N, 3] for each token of a crop the mean colour of its patch."""
    canvas = np.asarray(draw(picture, crop, (0, 0, PADDING), SPEC.resample), dtype=np.float64)
    rows, cols = SPEC.grid(crop.canvas)
    patches = canvas[: rows * 16, : cols * 16].reshape(rows, 16, cols, 16, 3).mean((1, 3))
    return torch.from_numpy(patches.reshape(-1, 3))


def check(places: list[Place | None], colours_V3: torch.Tensor, size: Size) -> None:
    """Patches tell the middle of their place, and by their blue how much of them is padding, which is neither red nor
    green."""
    assert len(places) == len(colours_V3)
    asked = 0
    for place, (red, green, blue) in zip(places, colours_V3.tolist(), strict=True):
        assert place is not None
        picture = 1 - blue / PADDING
        assert place.share == pytest.approx(picture, abs=0.07)
        if picture > 0.25:
            asked += 1
            x, y = (place.box.left + place.box.right) / 2, (place.box.top + place.box.bottom) / 2
            assert x == pytest.approx(red / picture / 200 * size.width, abs=0.02 * size.width)
            assert y == pytest.approx(green / picture / 200 * size.height, abs=0.02 * size.height)
    assert asked >= 3, "a poor example"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", VIEWS)
def test_places_are_where_the_pixels_come_from(name: str, size: Size) -> None:
    view = make_view(name)
    layout = view.layout(size, {"main": SPEC})
    picture = telling(size)
    crops = layout.crops["main"]
    config = MlpConfig()
    colours = torch.cat([told(picture, crop) for crop in crops])
    merged = merge_tiles(colours, [[GRID] * len(crops)], [layout])
    check(config.places(layout, {"main": SPEC}), merged, size)


def make_view(name: str) -> View:
    options = dict(VIEWS[name])
    return view_of(choose("view", options.pop("name"), options))


def test_crops_cover_the_picture_as_often_as_the_view_does() -> None:
    """All places of an image together: once for the overview, once for the tiles."""
    for size in SIZES:
        layout = make_view("split").layout(size, {"main": SPEC})
        places = MlpConfig().places(layout, {"main": SPEC})
        area = sum((p.box.right - p.box.left) * (p.box.bottom - p.box.top) for p in places if p)
        assert area == pytest.approx(2 * size.width * size.height)


def test_a_stride_that_does_not_divide_leaves_an_edge_out() -> None:
    spec = EncoderSpec(Size(70, 64), 16, 8, (0.5,) * 3, (0.5,) * 3)
    crop = Crop(Size(70, 64), Box(0, 0, 700, 640), Box(0, 0, 70, 64))
    places = crop_places(crop, Grid(2, 2), spec)
    assert [tuple(place.box) for place in places] == [
        (0, 0, 320, 320),
        (320, 0, 640, 320),
        (0, 320, 320, 640),
        (320, 320, 640, 640),
    ]


def test_latents_have_no_place() -> None:
    layout = make_view("split").layout(Size(50, 50), {"main": SPEC})
    assert PerceiverConfig(num_latents=3).places(layout, {"main": SPEC}) == [None] * 15


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_queries_that_are_left_out_move_no_others(size: Size) -> None:
    """sva keeps the rows and columns of its queries that show the picture; colours are read where they are kept."""
    layout = make_view("padded").layout(size, {"main": SPEC})
    config = SvaConfig(sides=(4,))
    [shape] = config.shapes(layout, {"main": SPEC})
    assert isinstance(shape, Grid)
    map_443 = told(telling(size), layout.crops["main"][0]).view(4, 4, 3)
    top, left = (4 - shape.rows) // 2, (4 - shape.cols) // 2
    kept = map_443[top : 4 - top, left : 4 - left].reshape(-1, 3)
    places = config.places(layout, {"main": SPEC})
    assert len(kept) == shape.count
    check([*places], kept, size)


def test_a_layout_whose_crops_are_selected_tells_nothing() -> None:
    """Fewer blocks than crops: which of them were kept, the picture decides."""
    layout = make_view("split").layout(Size(50, 50), {"main": SPEC})
    fewer = ImageLayout(layout.size, {"main": layout.crops["main"]}, None)

    class Selecting(MlpConfig):
        def shapes(self, layout: ImageLayout, encoders: Any) -> tuple[Grid | int, ...]:
            return super().shapes(layout, encoders)[:2]

    assert Selecting().places(fewer, {"main": SPEC}) == [None] * 32
