"""Merged maps equal a naive computation and transformers' LLaVA-NeXT, newlines included."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextModel

from beni.interfaces import FusionConfig
from beni.nn.merge import merge_tiles, merged_map
from beni.types import EncoderSpec, Features, Grid, ImageLayout, Merge, Size
from beni_plugins.connectors.concat import Concat, ConcatConfig
from beni_plugins.connectors.mlp import Mlp, MlpConfig
from beni_plugins.views.anyres import Anyres, AnyresConfig
from tests.plugins.specs import spec

SIZES = [Size(40, 30), Size(30, 70), Size(64, 64), Size(90, 31), Size(33, 32), Size(40, 99), Size(31, 32)]


def naive_map(tiles: Tensor, merge: Merge, tile: Grid, size: Size) -> Tensor:
    """Token by token: [rows, columns, D]."""
    rows, cols = merge.tiles.rows * tile.rows, merge.tiles.cols * tile.cols
    whole = torch.zeros(rows, cols, tiles.shape[-1], dtype=tiles.dtype)
    for y in range(rows):
        for x in range(cols):
            number = (y // tile.rows) * merge.tiles.cols + x // tile.cols
            whole[y, x] = tiles[number * tile.count + (y % tile.rows) * tile.cols + x % tile.cols]
    if merge.unpad and size.width / size.height > cols / rows:
        pad = (rows - int(round(size.height * cols / size.width, 7))) // 2
        whole = whole[pad : rows - pad]
    elif merge.unpad:
        pad = (cols - int(round(size.width * rows / size.height, 7))) // 2
        whole = whole[:, pad : cols - pad]
    if merge.shrink_to:
        height, width = whole.shape[:2]
        times = math.sqrt(height * width / (merge.shrink_to * tile.count))
        if times > 1.1:
            to = [int(height // times), int(width // times)]
            whole = interpolate(whole.permute(2, 0, 1)[None], to, mode="bilinear")[0].permute(1, 2, 0)
    return whole


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [Grid(4, 4), Grid(3, 5)])
@pytest.mark.parametrize("tiles", [Grid(1, 1), Grid(2, 2), Grid(3, 2), Grid(1, 4)])
def test_equals_the_naive_map(tiles: Grid, tile: Grid, size: Size) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(tiles.count * tile.count, 3, dtype=torch.float64)
    for unpad in (False, True):
        for shrink_to in (0, 1, 2):
            merge = Merge(tiles, unpad, shrink_to)
            expected = naive_map(tokens, merge, tile, size)
            assert merge.shape(tile, size) == expected.shape[:2]
            torch.testing.assert_close(merged_map(tokens, merge, tile, size), expected.flatten(0, 1))


def test_gradients_of_a_shrunk_map_are_those_of_interpolation() -> None:
    tokens = torch.randn(9 * 16, 2, dtype=torch.float64, requires_grad=True)
    merge, tile, size = Merge(Grid(3, 3), shrink_to=4), Grid(4, 4), Size(8, 8)
    weight = torch.randn(merge.shape(tile, size).count, 2, dtype=torch.float64)
    [ours] = torch.autograd.grad((merged_map(tokens, merge, tile, size) * weight).sum(), tokens)
    [wanted] = torch.autograd.grad((naive_map(tokens, merge, tile, size).flatten(0, 1) * weight).sum(), tokens)
    torch.testing.assert_close(ours, wanted)


def test_an_image_thinner_than_a_token_keeps_what_shows_it() -> None:
    merge, tile = Merge(Grid(3, 1), unpad=True, shrink_to=1), Grid(4, 4)
    assert merge.kept(tile, Size(1, 5000)) == (range(12), range(1, 3))
    assert merge.kept(Grid(3, 3), Size(1, 5000)) == (range(9), range(1, 2))
    out = merged_map(torch.arange(48.0)[:, None], merge, tile, Size(1, 5000))
    assert len(out) == merge.shape(tile, Size(1, 5000)).count


def test_only_the_last_crops_of_images_that_say_so_are_merged() -> None:
    tile = Grid(2, 2)
    plain = ImageLayout(Size(8, 8), {})
    merged = ImageLayout(Size(8, 8), {}, Merge(Grid(1, 2)))
    tokens = torch.arange((2 + 3 + 2) * 4.0)[:, None]
    out = merge_tiles(tokens, [(tile,) * 2, (tile,) * 3, (tile,) * 2], [plain, merged, merged])
    rows = [*range(8), *range(8, 12), 12, 13, 16, 17, 14, 15, 18, 19, 20, 21, 24, 25, 22, 23, 26, 27]
    assert out[:, 0].tolist() == rows
    assert merge_tiles(tokens, [(tile,) * 7], [plain]) is tokens


LLAVA_NEXT = LlavaNextConfig(
    vision_config=CLIPVisionConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    ),
    text_config=LlamaConfig(
        vocab_size=32, hidden_size=20, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    ),
    image_grid_pinpoints=[[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]],
)
"""Its pinpoints are heights by widths."""


def test_equals_transformers() -> None:
    """Random features through our connector and layout, and through LLaVA-NeXT's projector and packing."""
    torch.manual_seed(0)
    reference = LlavaNextModel(LLAVA_NEXT)
    encoders: dict[str, EncoderSpec] = {"main": spec(12)}
    connector = Mlp(MlpConfig(), encoders, 20)
    connector.layers[0] = reference.multi_modal_projector.linear_1
    connector.layers[2] = reference.multi_modal_projector.linear_2
    view = Anyres(AnyresConfig(pinpoints=("2x1", "1x2", "2x2", "1x3", "3x1")))
    layouts = [view.layout(size, encoders) for size in SIZES]
    crops = [len(layout.crops["main"]) for layout in layouts]
    assert len({layout.merge.tiles for layout in layouts if layout.merge}) > 3, "a poor example: few grids"

    tokens = torch.randn(sum(crops) * 16, 12)
    found = connector({"main": Features(tokens, (Grid(4, 4),) * sum(crops))}, layouts)
    images = found.tokens_VD.split([sum(counts) for counts in found.counts])
    projected = reference.multi_modal_projector(tokens.view(-1, 16, 12)).split(crops)
    sizes = torch.tensor([(size.height, size.width) for size in SIZES])
    expected, _ = reference.pack_image_features(projected, sizes, "default", reference.image_newline)
    for layout, image, wanted in zip(layouts, images, expected, strict=True):
        text = FusionConfig().spell(layout, MlpConfig().shapes(layout, encoders))
        parts = iter(image.split([part for part in text if isinstance(part, int)]))
        ours = [next(parts) if isinstance(part, int) else reference.image_newline[None] for part in text]
        torch.testing.assert_close(torch.cat(ours), wanted)


def test_a_connector_that_changes_the_grid_merges_its_own() -> None:
    """concat: four of the tile's tokens become one before tiles are put together."""
    torch.manual_seed(0)
    encoders = {"main": spec(3)}
    connector = Concat(ConcatConfig(), encoders, 5)
    layout = Anyres(AnyresConfig(overview=False)).layout(Size(40, 32), encoders)
    assert layout.merge is not None and layout.merge.tiles.count == 2
    features = Features(torch.randn(2 * 16, 3), (Grid(4, 4),) * 2)
    out = connector({"main": features}, [layout])
    wanted = naive_map(connector.project(features), layout.merge, Grid(2, 2), layout.size)
    torch.testing.assert_close(out.tokens_VD, wanted.flatten(0, 1))
    assert out.counts == ((wanted.shape[:2].numel(),),)
