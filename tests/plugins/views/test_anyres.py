"""Grids, crops and token counts are LLaVA's; the tiles are the resized and padded image, cut."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from beni.data.images import draw, mean_colour
from beni.errors import ConfigError, IncompatiblePartsError
from beni.interfaces import FusionConfig
from beni.sample import NEWLINE_MARK
from beni.types import Box, EncoderSpec, Grid, ImageLayout, Merge, Size
from beni_plugins.connectors.concat import Concat, ConcatConfig
from beni_plugins.connectors.mlp import Mlp, MlpConfig
from beni_plugins.connectors.perceiver import Perceiver, PerceiverConfig
from beni_plugins.fusions.xattn import CrossAttentionConfig
from beni_plugins.views.anyres import Anyres, AnyresConfig, best_grid
from tests.plugins.specs import spec

CLIP = {"main": spec(4, side=336, stride=14)}
SIGLIP = {"main": spec(4, side=384, stride=14)}
RANGE = ("(1x1),...,(6x6)",)

LLAVA_16 = [
    # image, best resolution in pixels, crops with the overview, kept rows and columns, flat tokens, with newlines
    ((640, 480), (672, 672), 5, (36, 48), 2880, 2340),
    ((480, 640), (672, 672), 5, (48, 36), 2880, 2352),
    ((336, 336), (336, 672), 3, (24, 24), 1728, 1176),
    ((1000, 300), (1008, 336), 4, (22, 72), 2304, 2182),
    ((300, 1000), (336, 1008), 4, (72, 22), 2304, 2232),
    ((1024, 768), (672, 672), 5, (36, 48), 2880, 2340),
    ((1920, 1080), (672, 672), 5, (28, 48), 2880, 1948),
    ((100, 1000), (336, 1008), 4, (72, 8), 2304, 1224),
    ((672, 672), (672, 672), 5, (48, 48), 2880, 2928),
    ((333, 500), (336, 672), 3, (36, 24), 1728, 1476),
]
LLAVA_NEXT = [
    # image, best resolution, kept, and for N = 9 and N = 4 the map's shape and the tokens with newlines
    ((1920, 1080), (1920, 1152), (75, 135), ((60, 108), 7269), ((40, 72), 3649)),
    ((640, 480), (768, 768), (40, 54), ((40, 54), 2929), ((40, 54), 2929)),
    ((384, 384), (384, 384), (27, 27), ((27, 27), 1485), ((27, 27), 1485)),
    ((3000, 1000), (2304, 768), (54, 162), ((46, 140), 7215), ((31, 93), 3643)),
    ((2304, 2304), (2304, 2304), (162, 162), ((81, 81), 7371), ((54, 54), 3699)),
]


def length(layout: ImageLayout, encoders: dict[str, EncoderSpec]) -> int:
    """Positions that an image takes in the text, newlines included."""
    text = FusionConfig().spell(layout, MlpConfig().shapes(layout, encoders))
    return sum(part if isinstance(part, int) else 1 for part in text)


def resolution(layout: ImageLayout, side: int) -> tuple[int, int]:
    rows, cols = (1 + max(crop.cell[axis] for crop in layout.crops["main"]) for axis in (0, 1))
    return cols * side, rows * side


@pytest.mark.parametrize(("size", "best", "crops", "kept", "flat", "unpadded"), LLAVA_16)
def test_llava_16(
    size: tuple[int, int], best: tuple[int, int], crops: int, kept: tuple[int, int], flat: int, unpadded: int
) -> None:
    one_by_one = Anyres(AnyresConfig(merge="flat")).layout(Size(*size), CLIP)
    assert resolution(one_by_one, 336) == best
    assert MlpConfig().shapes(one_by_one, CLIP) == (Grid(24, 24),) * crops
    assert length(one_by_one, CLIP) == flat
    padded = Anyres(AnyresConfig(merge="spatial")).layout(Size(*size), CLIP)
    assert MlpConfig().shapes(padded, CLIP) == (Grid(24, 24), Grid(best[1] // 14, best[0] // 14))
    assert length(padded, CLIP) == flat
    merged = Anyres(AnyresConfig()).layout(Size(*size), CLIP)
    assert merged.crops == one_by_one.crops
    assert MlpConfig().shapes(merged, CLIP) == (Grid(24, 24), kept)
    assert length(merged, CLIP) == unpadded
    assert MlpConfig().counts(merged, CLIP) == (576, kept[0] * kept[1])


@pytest.mark.parametrize(("size", "best", "kept", "nine", "four"), LLAVA_NEXT)
def test_llava_next(
    size: tuple[int, int], best: tuple[int, int], kept: tuple[int, int], nine: object, four: object
) -> None:
    whole = Anyres(AnyresConfig(pinpoints=RANGE)).layout(Size(*size), SIGLIP)
    assert resolution(whole, 384) == best and MlpConfig().shapes(whole, SIGLIP)[1] == kept
    for most, wanted in ((9, nine), (4, four)):
        layout = Anyres(AnyresConfig(pinpoints=RANGE, shrink_to=most)).layout(Size(*size), SIGLIP)
        assert (MlpConfig().shapes(layout, SIGLIP)[1], length(layout, SIGLIP)) == wanted


def sizes(count: int, most: int) -> list[Size]:
    """Random ones; many have sides that divide each other, where rounding decides."""
    chance = random.Random(0)
    found = []
    for _ in range(count):
        width, height = chance.randint(1, most), chance.randint(1, most)
        found.append(Size(width, chance.choice([height, width, 2 * width, max(1, width // 2), max(1, 3 * width // 4)])))
    return found


@pytest.mark.parametrize("pinpoints", [AnyresConfig().pinpoints, RANGE])
def test_every_size_gets_the_grid_of_the_reference(pinpoints: tuple[str, ...]) -> None:
    grids = AnyresConfig(pinpoints=pinpoints).grids
    possible = [(rows * 336, cols * 336) for rows, cols in grids]
    for size in [*sizes(600, 3000), Size(2519, 1259), Size(1, 5000)]:
        rows, cols = best_grid(size, Size(336, 336), grids)
        assert (rows * 336, cols * 336) == select_best_resolution((size.height, size.width), possible), size


def test_every_size_keeps_the_rows_of_the_reference() -> None:
    for size in sizes(500, 400):
        merge = Merge(Grid(1 + size.width % 3, 1 + size.height % 2), unpad=True)
        rows, cols = merge.kept(Grid(8, 6), size)
        places = torch.arange(merge.tiles.rows * 8 * merge.tiles.cols * 6).view(1, merge.tiles.rows * 8, -1)
        expected = unpad_image(places, (size.height, size.width))[0]
        if expected.numel():
            assert torch.equal(places[0, rows.start : rows.stop, cols.start : cols.stop], expected), size
        else:  # thinner than a token
            assert 1 <= min(len(rows), len(cols)) <= 2


def whole_canvas(image: Image.Image, target: Size, colour: tuple[int, int, int]) -> Image.Image:
    """The reference: resize to fit, paste in the middle."""
    scale = min(target.width / image.width, target.height / image.height)
    if target.width / image.width < target.height / image.height:
        size = (target.width, min(math.ceil(image.height * scale), target.height))
    else:
        size = (min(math.ceil(image.width * scale), target.width), target.height)
    canvas = Image.new("RGB", target, colour)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(resized, ((target.width - size[0]) // 2, (target.height - size[1]) // 2))
    return canvas


@pytest.mark.parametrize(
    ("size", "pinpoints", "grid"),
    [
        ((64, 64), ("2x2",), (2, 2)),
        ((90, 40), ("3x1",), (1, 3)),
        ((37, 101), AnyresConfig().pinpoints, (3, 1)),
        ((500, 301), RANGE, (4, 6)),
        ((300, 20), ("3x3",), (3, 3)),  # the upper and the lower tiles are all padding
        ((7, 7), ("3x1",), (1, 3)),  # so are those at the sides
        ((1, 300), ("2x2",), (2, 2)),
    ],
)
def test_tiles_put_together_are_the_resized_and_padded_image(
    size: tuple[int, int], pinpoints: tuple[str, ...], grid: tuple[int, int]
) -> None:
    encoder = spec(4)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    colour = mean_colour(encoder)
    overview, *tiles = Anyres(AnyresConfig(pinpoints=pinpoints)).crops(Size(*size), encoder)
    assert (overview.box, overview.valid, overview.level) == (Box.of(Size(*size)), Box.of(encoder.size), 0)
    assert [tile.cell for tile in tiles] == [(row, col) for row in range(grid[0]) for col in range(grid[1])]
    drawn = [np.asarray(draw(image, tile, colour, "bicubic"), dtype=int) for tile in tiles]
    rows = [np.concatenate(drawn[at : at + grid[1]], axis=1) for at in range(0, len(drawn), grid[1])]
    expected = np.asarray(whole_canvas(image, Size(grid[1] * 32, grid[0] * 32), colour), dtype=int)
    difference = np.abs(np.concatenate(rows) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # boxes are single precision to PIL


def test_the_background_may_be_black_as_the_references() -> None:
    """Also on tiles that show nothing of the image."""
    encoder, image = spec(4), Image.new("RGB", (300, 20), (200, 100, 50))
    _, *tiles = Anyres(AnyresConfig(pinpoints=("3x3",), background="black")).crops(Size(300, 20), encoder)
    drawn = [np.asarray(draw(image, tile, mean_colour(encoder), "bicubic"), dtype=int) for tile in tiles]
    canvas = np.concatenate([np.concatenate(drawn[at : at + 3], axis=1) for at in (0, 3, 6)])
    assert np.abs(canvas - np.asarray(whole_canvas(image, Size(96, 96), (0, 0, 0)), dtype=int)).max() <= 1
    assert not np.concatenate(drawn[:3]).any()


def test_without_overview_tiles_are_all_there_is() -> None:
    size = Size(640, 480)
    _, *tiles = Anyres(AnyresConfig()).crops(size, CLIP["main"])
    bare = Anyres(AnyresConfig(overview=False)).layout(size, CLIP)
    assert list(bare.crops["main"]) == tiles
    assert MlpConfig().shapes(bare, CLIP) == (Grid(36, 48),)


@pytest.mark.parametrize(("merge", "most"), [("flat", 0), ("spatial", 0), ("spatial_unpad", 0), ("spatial_unpad", 4)])
def test_no_image_is_longer_than_the_largest(merge: str, most: int) -> None:
    view = Anyres(AnyresConfig(pinpoints=("(1x1),...,(3x3)", "5x1"), merge=merge, shrink_to=most))  # type: ignore[arg-type]
    encoders = {"main": spec(4, side=48)}
    bound = length(view.bound(encoders), encoders)
    found = [length(view.layout(size, encoders), encoders) for size in sizes(200, 240)]
    assert max(found) <= bound
    assert length(view.layout(view.largest(encoders["main"]), encoders), encoders) == bound


def test_several_encoders_share_a_grid() -> None:
    """By their own sizes, the second would choose another; its tiles show the same parts of the image."""
    encoders = {"small": spec(4, side=32), "large": spec(4, side=64, stride=16)}
    size = Size(70, 60)
    view = Anyres(AnyresConfig())
    assert best_grid(size, Size(32, 32), view.grids) != best_grid(size, Size(64, 64), view.grids)
    layout = view.layout(size, encoders)
    assert layout.merge is not None and layout.merge.tiles == best_grid(size, Size(32, 32), view.grids)
    for one, other in zip(layout.crops["small"], layout.crops["large"], strict=True):
        assert (one.level, one.cell) == (other.level, other.cell)
        assert np.allclose(one.box, other.box, atol=2.0)


def test_the_connectors_own_grid_is_unpadded() -> None:
    layout = Anyres(AnyresConfig()).layout(Size(1000, 300), CLIP)
    assert ConcatConfig().shapes(layout, CLIP) == (Grid(12, 12), Grid(10, 36))  # int(300 · 36/1000) = 10


def test_a_connector_without_a_grid_is_refused() -> None:
    config = PerceiverConfig(num_latents=4)
    for merge in ("spatial", "spatial_unpad"):
        with pytest.raises(IncompatiblePartsError, match=r"4 tokens of each .*no place.*flat.*mlp, concat"):
            Perceiver.check(config, Anyres(AnyresConfig(merge=merge)), CLIP)  # type: ignore[arg-type]
    Perceiver.check(config, Anyres(AnyresConfig(merge="flat")), CLIP)
    for connector in (Mlp, Concat):
        connector.check(connector.Config(), Anyres(AnyresConfig()), CLIP)


def test_cross_attention_writes_no_newlines() -> None:
    layout = Anyres(AnyresConfig()).layout(Size(640, 480), CLIP)
    shapes = MlpConfig().shapes(layout, CLIP)
    assert CrossAttentionConfig().spell(layout, shapes) == ["<image>"]
    assert CrossAttentionConfig().marks(layout, shapes) == ("<image>",)
    assert FusionConfig().marks(layout, shapes) == (NEWLINE_MARK,)


@pytest.mark.parametrize(
    ("pinpoints", "grids"),
    [
        (("1x2", "2x1"), [(2, 1), (1, 2)]),
        (("(1x1),...,(2x3)",), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)]),
        (("(2x2), ..., (3x2)", "1x1"), [(2, 2), (2, 3), (1, 1)]),
    ],
)
def test_pinpoints_are_columns_by_rows(pinpoints: tuple[str, ...], grids: list[tuple[int, int]]) -> None:
    assert list(AnyresConfig(pinpoints=pinpoints).grids) == grids


@pytest.mark.parametrize("wrong", ["", "2", "2*2", "0x1", "(1x1)", "(2x2),...,(1x1)", "336x"])
def test_what_is_no_grid_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"option 'pinpoints': .* is neither COLUMNSxROWS"):
        AnyresConfig(pinpoints=(wrong,))


def test_options_that_do_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="no grid to choose from"):
        AnyresConfig(pinpoints=())
    for options in ({"merge": "flat", "shrink_to": 4}, {"shrink_to": -1}):
        with pytest.raises(ConfigError, match="option 'shrink_to'"):
            AnyresConfig(**options)  # type: ignore[arg-type]
