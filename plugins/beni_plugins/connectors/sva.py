"""Spatial vision aggregator (Cambrian-1): queries on a grid, each of which reads the tokens under it in every encoder.

Reference: cambrian-mllm/cambrian, cambrian/model/cambrian_arch.py (prepare_inputs_labels_for_multimodal,
unmask_attention_mask, unpad_image) and cambrian/model/vision_sampler.py; paper: Tong et al. 2024, arXiv 2406.16860,
section 3.2. Maps whose sides no query grid divides are resized (bilinear), as the reference resizes all of its maps.
Positions that are wholly padding are left out, in training as in generation; the reference only hides them in training.

Shapes: I images, C the aggregator's width, V queries of all images, R tokens of one encoder under a query, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beni.errors import ConfigError, IncompatiblePartsError
from beni.interfaces import Connector, ConnectorConfig, View, WindowSpec
from beni.nn.aggregator import SEPARATE, SpatialAggregator
from beni.nn.looks import listening
from beni.nn.places import Place, grid_places
from beni.types import Box, Crop, EncoderSpec, Features, Grid, ImageLayout, VisualTokens, Windows
from beni.weights import renamed


@dataclass(frozen=True, slots=True)
class SvaConfig(ConnectorConfig):
    variant: Literal["joint", "sep"] = "joint"
    """joint: one attention over all encoders' tokens; sep: one for each encoder, then a weighted sum."""
    sides: tuple[int, ...] = (8,)
    """Side of the query grid of each group; the largest is the grid of the visual tokens. (24,) in the reference."""
    width: int = 128
    """Channels in which encoders and queries meet; 1024 in the reference."""
    heads: int = 4
    """Attention heads; 16 in the reference."""
    depth: int = 2
    """Layers; 3 in the reference."""
    unpad: bool = True
    """Whether positions that are nothing but padding are left out (a view that keeps the aspect ratio pads)."""

    needs_size: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.sides or min(self.sides) < 1 or min(self.width, self.heads, self.depth) < 1:
            raise ConfigError("connector 'sva': --connector.sides, width, heads and depth must all be at least 1")
        if self.width % self.heads:
            raise ConfigError(f"connector 'sva': heads {self.heads} do not divide --connector.width {self.width}")

    @property
    def side(self) -> int:
        """Side of the grid of visual tokens."""
        return max(self.sides)

    def resized(self, grid: Grid) -> Grid:
        """The nearest grid, of at least a token per query, that every query grid divides."""
        step = lcm(*self.sides)
        return Grid(*(max(step, round(n / step) * step) for n in grid))

    def out_grid(self, grid: Grid) -> Grid:
        return Grid(self.side, self.side)

    def shapes(self, layout: ImageLayout, encoders: Mapping[str, EncoderSpec]) -> tuple[Grid | int, ...]:
        """One map per image, without the rows or columns that are padding.

        Raises:
            IncompatiblePartsError: several crops of an image, or one that is not of the encoder's own size.
        """
        if any([crop.canvas for crop in layout.crops[key]] != [spec.size] for key, spec in encoders.items()):
            crops = max(map(len, layout.crops.values()))
            raise IncompatiblePartsError(
                f"connector 'sva' reads one crop of an image per encoder, of the encoder's own size; this view makes "
                f"{crops}: use --view single, or another connector"
            )
        rows = cols = 0
        if self.unpad:
            rows, cols = _padding(layout.crops[next(iter(encoders))][0], Grid(self.side, self.side))
        return (Grid(self.side - 2 * rows, self.side - 2 * cols),)

    def places(self, layout: ImageLayout, encoders: Mapping[str, EncoderSpec]) -> list[Place | None]:
        """Of the queries that are kept; all of the grid lies on the first encoder's crop."""
        crop = layout.crops[next(iter(encoders))][0]
        grid = Grid(self.side, self.side)
        rows, cols = _padding(crop, grid) if self.unpad else (0, 0)
        kept = Box(cols, rows, grid.cols - cols, grid.rows - rows)
        across, down = crop.canvas.width / grid.cols, crop.canvas.height / grid.rows
        on_canvas = Box(kept.left * across, kept.top * down, kept.right * across, kept.bottom * down)
        return [*grid_places(crop, Grid(int(kept.bottom - kept.top), int(kept.right - kept.left)), on_canvas)]

    def windows(self, encoders: Mapping[str, EncoderSpec]) -> WindowSpec:
        grids = [self.resized(spec.grid(spec.size)) for spec in encoders.values()]
        return WindowSpec(tuple(grid.count // self.side**2 for grid in grids), self.width)


class Sva(Connector):
    """Any number of encoders, whatever their grids; one crop of each image per encoder."""

    beni_api = 1
    Config = SvaConfig

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.grids = {key: config.resized(spec.grid(spec.size)) for key, spec in encoders.items()}
        self.projectors = nn.ModuleDict(
            {
                key: nn.Sequential(
                    nn.Linear(spec.width, config.width),
                    nn.GELU(),
                    nn.Linear(config.width, config.width),
                    nn.LayerNorm(config.width),
                )
                for key, spec in encoders.items()
            }
        )
        self.query_GC = nn.Parameter(torch.randn(len(config.sides), config.width) * config.width**-0.5)
        self.samplers = nn.ModuleList(
            SpatialAggregator(
                config.width,
                [grid.count // side**2 for grid in self.grids.values()],
                config.width,
                config.heads,
                config.depth,
                config.variant,
            )
            for side in config.sides
        )
        self.project_out = nn.Sequential(
            nn.Linear(config.width * len(config.sides), out_width), nn.GELU(), nn.Linear(out_width, out_width)
        )

    def forward(self, features: Mapping[str, Features], layouts: Sequence[ImageLayout]) -> VisualTokens:
        maps = {key: self._map(key, features[key]) for key in self.encoders}
        visible = {key: self._visible(key, layouts).to(maps[key].device) for key in self.encoders}
        context_IC = next(iter(maps.values())).mean((1, 2))
        side = self.config.side
        outputs = []
        for query_C, group, sampler in zip(self.query_GC, self.config.sides, self.samplers, strict=True):
            windows = _windows(maps, visible, context_IC, group)
            read_VC = sampler(query_C.expand(len(windows.context_VC), -1), windows)
            map_ICHW = rearrange(read_VC, "(i h w) c -> i c h w", h=group, w=group)
            outputs.append(map_ICHW if group == side else _resize(map_ICHW, Grid(side, side)))
        tokens_VD = self.project_out(rearrange(torch.cat(outputs, dim=1), "i c h w -> (i h w) c"))
        keep_V = self._kept(layouts).to(tokens_VD.device)
        return self.deliver(tokens_VD[keep_V], layouts, _windows(maps, visible, context_IC, side).at(keep_V))

    def convert_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cambrian-1's, whose encoders are numbered; here they are in the order in which they were chosen."""
        projectors = {
            rf"mm_projector_aux_{index}\.(.+)": rf"projectors.{key}.\1" for index, key in enumerate(self.encoders)
        }
        return renamed(
            state,
            {
                **projectors,
                r"vision_query": "query_GC",
                rf"vision_sampler_(\d+)\.{SEPARATE}": r"samplers.\1.\2.\3",
                r"vision_sampler_(\d+)\.(.+)": r"samplers.\1.\2",
                r"mm_projector\.(.+)": r"project_out.\1",
            },
        )

    def _map(self, key: str, features: Features) -> Float[Tensor, "I rows cols C"]:
        """An encoder's tokens on their grid, resized to what the queries need, in the common width."""
        spec, grid = self.encoders[key], self.grids[key]
        own = spec.grid(spec.size)
        map_IHWD = rearrange(features.tokens_ND, "(i h w) d -> i h w d", h=own.rows, w=own.cols)
        if own != grid:
            map_IHWD = _resize(map_IHWD.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
        return self.projectors[key](map_IHWD)

    def _visible(self, key: str, layouts: Sequence[ImageLayout]) -> Bool[Tensor, "I rows cols"]:
        """Which tokens of an encoder's map are picture."""
        return torch.stack([_picture(layout.crops[key][0], self.grids[key]) for layout in layouts])

    def _kept(self, layouts: Sequence[ImageLayout]) -> Tensor:
        """Indices of the queries that become visual tokens."""
        side, first = self.config.side, next(iter(self.encoders))
        if not self.config.unpad:
            return torch.arange(len(layouts) * side**2)
        kept = torch.stack([_picture(layout.crops[first][0], Grid(side, side)) for layout in layouts])
        return kept.flatten().nonzero()[:, 0]

    @classmethod
    def check(cls, config: Any, view: View, encoders: Mapping[str, EncoderSpec]) -> None:
        config.shapes(view.bound(encoders), encoders)


def _windows(
    maps: Mapping[str, Float[Tensor, "I _ _ C"]],
    visible: Mapping[str, Bool[Tensor, "I _ _"]],
    context_IC: Float[Tensor, "I C"],
    side: int,
) -> Windows:
    """What lies under each query of a grid of side × side; a window without any picture is read whole."""

    def under(map_: Tensor) -> Tensor:
        return rearrange(map_, "i (q r) (p s) ... -> (i q p) (r s) ...", q=side, p=side)

    def numbers(mask: Tensor) -> tuple[tuple[Grid, ...], Tensor]:
        images, *sides = mask.shape
        return (Grid(*sides),) * images, under(torch.arange(mask.numel(), device=mask.device).view_as(mask))

    masks = [under(mask) for mask in visible.values()]
    return Windows(
        tuple(under(map_) for map_ in maps.values()),
        tuple(mask | ~mask.any(1, keepdim=True) for mask in masks),
        repeat(context_IC, "i c -> (i q) c", q=side**2),
        tuple(map(numbers, visible.values())) if listening() else None,
    )


def _resize(map_IDHW: Float[Tensor, "I D h w"], grid: Grid) -> Float[Tensor, "I D rows cols"]:
    """Bilinear in float32, corners not aligned."""
    resized = F.interpolate(map_IDHW.float(), size=tuple(grid), mode="bilinear", align_corners=False)
    return resized.to(map_IDHW.dtype)


def _padding(crop: Crop, grid: Grid) -> tuple[int, int]:
    """Rows at the top and at the bottom, and columns at the left and at the right, that are padding.

    The reference's rule: the picture takes floor(n · share) of n rows, and half of the others, rounded down, are
    padding on either side.
    """
    high = (crop.valid.bottom - crop.valid.top) / crop.canvas.height
    wide = (crop.valid.right - crop.valid.left) / crop.canvas.width
    rows, cols = (n - int(n * share + 1e-6) for n, share in ((grid.rows, high), (grid.cols, wide)))
    return min(rows // 2, (grid.rows - 1) // 2), min(cols // 2, (grid.cols - 1) // 2)


def _picture(crop: Crop, grid: Grid) -> Bool[Tensor, "rows cols"]:
    rows, cols = _padding(crop, grid)
    picture = torch.zeros(tuple(grid), dtype=torch.bool)
    picture[rows : grid.rows - rows, cols : grid.cols - cols] = True
    return picture
