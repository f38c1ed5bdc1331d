"""Tiles of one picture to one map of tokens: `beni.types.Merge` for whoever has the tokens.

Shapes: V tokens of a batch, D channels, R and S rows and columns of tiles, h and w rows and columns of a tile's grid.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from beni.types import Grid, ImageLayout, Merge, Size, count_of


def merge_tiles(
    tokens_VD: Float[Tensor, "V D"], outs: Sequence[Sequence[Grid | int]], layouts: Sequence[ImageLayout]
) -> Float[Tensor, "W D"]:
    """The tokens of a batch with the tiles of every image whose layout says so put together to one map.

    Args:
        tokens_VD: crop after crop, each row by row.
        outs: for each image, what its crops became.
        layouts: how the images were cut.
    """
    if all(layout.merge is None for layout in layouts):
        return tokens_VD
    blocks: list[Tensor] = []
    images = tokens_VD.split([sum(map(count_of, crops)) for crops in outs])
    for image, crops, layout in zip(images, outs, layouts, strict=True):
        if layout.merge is None:
            blocks.append(image)
            continue
        tile = crops[-1]
        assert isinstance(tile, Grid)  # `ConnectorConfig.shapes` refused the rest
        tiles = layout.merge.tiles.count * tile.count
        blocks += [image[:-tiles], merged_map(image[-tiles:], layout.merge, tile, layout.size)]
    return torch.cat(blocks)


def merged_map(tiles_VD: Float[Tensor, "V D"], merge: Merge, tile: Grid, size: Size) -> Float[Tensor, "W D"]:
    """One image's tiles, each of this grid, as one map, row by row: cut to what is kept, and shrunk."""
    map_RSD = rearrange(
        tiles_VD, "(R S h w) D -> (R h) (S w) D", R=merge.tiles.rows, S=merge.tiles.cols, h=tile.rows, w=tile.cols
    )
    rows, cols = merge.kept(tile, size)
    map_RSD = map_RSD[rows.start : rows.stop, cols.start : cols.stop]
    wanted = merge.shape(tile, size)
    for side, length in enumerate(wanted):
        map_RSD = shrink(map_RSD, side, length)
    return map_RSD.flatten(0, 1)


def shrink(map_RSD: Float[Tensor, "R S D"], side: int, length: int) -> Float[Tensor, "P Q D"]:
    """Linear interpolation between neighbours along one side, as `interpolate(…, align_corners=False)` computes it.

    The same numbers; but the backward pass of `interpolate` adds in any order on a GPU, and runs should repeat.
    """
    before = map_RSD.shape[side]
    if length == before:
        return map_RSD
    centres = (torch.arange(length, dtype=torch.float64) + 0.5) * (before / length) - 0.5
    low = centres.long()
    high = (low + 1).clamp(max=before - 1)
    weight = (centres - low).to(map_RSD).unflatten(0, (-1, 1, 1) if side == 0 else (1, -1, 1))
    one, other = (map_RSD[at] if side == 0 else map_RSD[:, at] for at in (low, high))
    return torch.lerp(one, other, weight)
