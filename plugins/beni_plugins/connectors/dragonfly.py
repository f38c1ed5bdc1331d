"""Crops at several resolutions made affordable: the finer ones are pooled, or only the best of them are kept.

References: togethercomputer/Dragonfly, src/dragonfly/models/modeling_dragonfly.py (DragonflyForCausalLM.forward):
`pool` is the main branch (version 2), `select` the branch dragonfly-v1, the architecture of the paper's first version
(Thapa et al. 2024, arXiv 2406.00977). Both map tokens by one linear layer; here any connector can do that, the inner
one. Two differences that change no number:

- `pool` averages before the inner connector, the reference after its linear layer. For a linear layer it is the same up
  to rounding, and with kernels of 4 a sixteenth of the work; for any other the inner connector reads the pooled map.
- the reference puts a newline token of the text behind each crop; here that is `--fusion.newline block`.

Shapes: C crops, P prefix tokens, D channels, h and w rows and columns of the pooled grid, p and q of a pooling window;
M medium and H high crops of one image, N tokens of a crop, K high crops kept per medium crop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Annotated, Any, Literal

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.config import OfKind, Part, at_least_one, choose
from beni.errors import GridError, IncompatiblePartsError, PluginError
from beni.interfaces import Connector, ConnectorConfig, Provenance, View, load
from beni.nn.looks import listening
from beni.types import Box, Crop, EncoderSpec, Features, Grid, ImageLayout, Size, VisualTokens, count_of

LOW, MEDIUM, HIGH = range(3)
"""Levels of crops."""
SHAPES = tuple(Size(w, h) for w, h in ((1, 1), (1024, 1024), (1536, 1024), (1024, 1536), (4096, 1024), (1024, 4096)))
"""A blank image, and images of several aspect ratios: their crops are looked at before anything is built."""


@dataclass(frozen=True, slots=True)
class DragonflyConfig(ConnectorConfig):
    inner: Annotated[Part, OfKind("connector")] = field(default_factory=lambda: choose("connector", "mlp"))
    """The connector that makes visual tokens of each crop; the references' is mlp with kind linear."""
    variant: Literal["pool", "select"] = "pool"
    """pool: every crop above the lowest level is averaged over windows of tokens (version 2); select: of the high crops
    only those are kept that are most like what they are compared with (version 1)."""
    pool: int = 4
    """Side of a pooling window in tokens."""
    top_k: int = 1
    """High crops kept for each medium crop; 3 of 6 in version 1."""
    query: Literal["medium", "low"] = "medium"
    """What high crops are compared with, by the dot product of mean tokens: the medium crop they belong to, as in the
    reference's code, or the low crop, as in the paper's text."""
    regions: Literal["block", "spatial"] = "spatial"
    """Which high crops belong to a medium crop: block: the first share of them to the first one and so on, as in the
    reference's code; spatial: those that lie in it."""
    keep_prefix: bool = False
    """Whether CLS and register tokens of an encoder that has them are kept, in front of each crop's tokens, as in the
    references; needs an inner connector that maps token by token."""

    def __post_init__(self) -> None:
        at_least_one(self, "connector", "dragonfly", "pool", "top_k")

    @property
    def selects(self) -> bool:
        return self.variant == "select"

    def out_grid(self, grid: Grid) -> Grid | int:
        """What the grid of a crop becomes that is not pooled."""
        assert isinstance(self.inner.config, ConnectorConfig)
        return self.inner.config.out_grid(grid)

    def shapes(self, layout: ImageLayout, encoders: Mapping[str, EncoderSpec]) -> tuple[Grid | int, ...]:
        """What the crops that are kept become, in order.

        Raises:
            GridError: a grid that the pooling or the inner connector does not divide.
            IncompatiblePartsError: the number of crops kept would not be known beforehand.
        """
        [key] = encoders
        crops = layout.crops[key]
        shapes = [self._shape(encoders[key], crop) for crop in crops]
        if self.variant == "pool":
            return tuple(shapes)
        whole = [shape for shape, crop in zip(shapes, crops, strict=True) if crop.level != HIGH]
        high = [shape for shape, crop in zip(shapes, crops, strict=True) if crop.level == HIGH]
        if len(set(high)) > 1:
            raise IncompatiblePartsError("connector 'dragonfly' selects among high crops of one size, these differ")
        return (*whole, *high[: self.top_k * len(self.candidates(crops))])

    def candidates(self, crops: Sequence[Crop]) -> list[list[int]]:
        """For each medium crop of an image the high crops that belong to it, by their index among the high crops.

        No crop belongs to two, and each has at least `top_k`: then exactly `top_k` times as many are kept.

        Raises:
            IncompatiblePartsError: a view whose crops are not so.
        """
        medium, high = ([crop for crop in crops if crop.level == level] for level in (MEDIUM, HIGH))
        if not medium:
            return []
        if self.regions == "block":
            share, rest = divmod(len(high), len(medium))
            if rest:
                raise IncompatiblePartsError(
                    f"connector 'dragonfly' cannot share {len(high)} high crops evenly among {len(medium)} medium ones"
                    f": choose other grids, or --connector.regions spatial"
                )
            found = [list(range(n * share, (n + 1) * share)) for n in range(len(medium))]
        else:
            found = [[n for n, crop in enumerate(high) if _lies_in(crop.box, region.box)] for region in medium]
        if len(set(chain.from_iterable(found))) < sum(map(len, found)):
            raise IncompatiblePartsError(
                "connector 'dragonfly' needs medium crops that do not overlap: a high crop that is chosen for two of "
                "them would be kept once, and the number of visual tokens would depend on the picture"
            )
        if (fewest := min(map(len, found))) < self.top_k:
            raise IncompatiblePartsError(
                f"connector 'dragonfly' keeps {self.top_k} high crops for each of {len(medium)} medium crops, but only "
                f"{fewest} of {len(high)} belong to one of them: lower --connector.top-k, or choose other grids "
                f"(--view.medium, --view.high, --view.factor)"
            )
        return found

    def prefix(self, spec: EncoderSpec) -> int:
        """Prefix tokens kept of each crop."""
        return spec.prefix if self.keep_prefix else 0

    def window(self, crop: Crop) -> int:
        """Side of the pooling window for a crop; 1 where it is not pooled."""
        return self.pool if self.variant == "pool" and crop.level > LOW else 1

    def _shape(self, spec: EncoderSpec, crop: Crop) -> Grid | int:
        side, grid = self.window(crop), spec.grid(crop.canvas)
        if grid.rows % side or grid.cols % side:
            near = Grid(*(max(1, round(length / side)) * side for length in grid))
            raise GridError(
                f"connector 'dragonfly' averages {side}x{side} tokens into one, which does not divide a grid of {grid}"
                f"; {near} would do",
                near,
            )
        try:
            out = self.out_grid(Grid(grid.rows // side, grid.cols // side))
        except GridError as error:
            if side == 1 or error.nearest is None:
                raise
            near = Grid(*(length * side for length in error.nearest))
            raise GridError(f"{error} behind a pooling of {side}x{side}, {near} in front of it", near) from error
        prefix = self.prefix(spec)
        return prefix + count_of(out) if prefix else out


class Dragonfly(Connector):
    """Pooling in front of the inner connector, or selection behind it."""

    beni_api = 1
    Config = DragonflyConfig

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__(config, encoders, out_width)
        self.inner: Connector = load("connector", config.inner)(config.inner.config, encoders, out_width)
        [(self.key, spec)] = encoders.items()
        self.prefix = config.prefix(spec)

    def forward(self, features: Mapping[str, Features], layouts: Sequence[ImageLayout]) -> VisualTokens:
        crops = [crop for layout in layouts for crop in layout.crops[self.key]]
        pooled = pool(features[self.key], [self.config.window(crop) for crop in crops])
        if listener := listening():
            listener.about(pooled.grids if self.config.variant == "pool" and not self.prefix else None)
        tokens_VD = self.project(pooled)
        lengths = [self.prefix + count_of(self.config.out_grid(grid)) for grid in pooled.grids]
        if tokens_VD.shape != (sum(lengths), self.out_width):
            raise PluginError(
                f"connector {type(self).__name__} returned {tuple(tokens_VD.shape)} for crops of which its inner "
                f"connector {type(self.inner).__name__} declared {sum(lengths)} tokens of {self.out_width} channels: "
                f"`project` and `out_grid` must agree"
            )
        if self.config.variant == "select":
            tokens_VD = self._select(tokens_VD.split(lengths), layouts)
        return self.deliver(tokens_VD, layouts)

    def project(self, features: Features) -> Float[Tensor, "V out"]:
        """The visual tokens of each crop; prefix tokens in front of them, as a strip of a crop of its own."""
        if not self.prefix:
            return self.inner.project(features)
        assert features.prefix_CPD is not None
        grids = tuple(chain.from_iterable((Grid(1, self.prefix), grid) for grid in features.grids))
        maps = features.tokens_ND.split([grid.count for grid in features.grids])
        tokens_ND = torch.cat(list(chain.from_iterable(zip(features.prefix_CPD, maps, strict=True))))
        return self.inner.project(Features(tokens_ND, grids))

    @classmethod
    def check(cls, config: Any, view: View, encoders: Mapping[str, EncoderSpec]) -> None:
        """Refuse several encoders, views without the levels, and inner connectors that cannot work crop by crop."""
        if len(encoders) > 1:
            raise IncompatiblePartsError(
                f"connector 'dragonfly' works on the crops of one encoder, this model has {len(encoders)} "
                f"({', '.join(encoders)}): choose one of them, or a connector that joins encoders"
            )
        name, inner = config.inner.plugin.name, load("connector", config.inner)
        if inner.forward is not Connector.forward:  # type: ignore[attr-defined]
            raise IncompatiblePartsError(
                f"connector 'dragonfly' works around a connector that makes tokens crop by crop, '{name}' looks at all "
                f"crops at once: choose another --connector.inner"
            )
        [(key, spec)] = encoders.items()
        bound = view.bound(encoders)
        if bound.merge is not None:
            raise IncompatiblePartsError(
                f"connector 'dragonfly' works on crops, view {type(view).__name__} puts its tiles together to a map: "
                f"use --view.merge flat, or --view pyramid"
            )
        cls._check_levels(config, view, bound.crops[key])
        inner.check(config.inner.config, view, encoders)  # type: ignore[attr-defined]
        super().check(config, view, encoders)
        if config.prefix(spec) and not _keeps(config, Grid(1, spec.prefix)):
            raise IncompatiblePartsError(
                f"connector 'dragonfly' keeps {spec.prefix} prefix tokens of each crop, which needs an inner connector "
                f"that maps token by token, and '{name}' does not: leave them out (--connector.no-keep-prefix)"
            )
        for size in SHAPES:
            config.counts(view.layout(size, encoders), encoders)

    @staticmethod
    def _check_levels(config: DragonflyConfig, view: View, crops: Sequence[Crop]) -> None:
        levels = {crop.level for crop in crops}
        if config.variant == "pool":
            lacks, wanted = max(levels) == LOW, "crops above the lowest level (--view split, --view pyramid)"
        else:
            needed = {MEDIUM, HIGH} | ({LOW} if config.query == "low" else set())
            lacks, wanted = not needed <= levels, "low, medium and high crops (--view pyramid)"
        if lacks:
            raise IncompatiblePartsError(
                f"connector 'dragonfly' with variant {config.variant} needs {wanted}; view {type(view).__name__} with "
                f"these options has only level{'s' if len(levels) > 1 else ''} {', '.join(map(str, sorted(levels)))}"
            )

    def blocks(self) -> Sequence[nn.Module]:
        return self.inner.blocks()

    def convert_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the inner connector knows: all weights are its own."""
        return {f"inner.{name}": tensor for name, tensor in self.inner.convert_reference(state).items()}

    def load_pretrained(self) -> Provenance | None:
        """By its own option, or by the inner connector's."""
        return super().load_pretrained() or self.inner.load_pretrained()

    def _select(self, crops: Sequence[Float[Tensor, "N D"]], layouts: Sequence[ImageLayout]) -> Float[Tensor, "V D"]:
        """The tokens of all crops but the high ones, then those of the high crops that are kept, image after image."""
        kept, first = [], 0
        for layout in layouts:
            cut = layout.crops[self.key]
            tokens = crops[first : first + len(cut)]
            first += len(cut)
            low, medium, high = ([x for x, crop in zip(tokens, cut, strict=True) if crop.level == n] for n in range(3))
            kept += [x for x, crop in zip(tokens, cut, strict=True) if crop.level != HIGH]
            if candidates := self.config.candidates(cut):
                queries = [torch.cat(low)] if self.config.query == "low" else medium
                chosen = select(_summaries(queries), _summaries(high), candidates, self.config.top_k)
                kept.append(torch.stack(high)[chosen].flatten(0, 1))
        return torch.cat(kept)


def pool(features: Features, sides: Sequence[int]) -> Features:
    """Average each crop's map over windows of tokens, of the side given for it; a window of one token is the token."""
    maps: list[Tensor] = []
    grids: list[Grid] = []
    first = 0
    for (grid, side), run in groupby(zip(features.grids, sides, strict=True)):
        crops, (h, w) = len(list(run)), (grid.rows // side, grid.cols // side)
        x_ND = features.tokens_ND[first : first + crops * grid.count]
        first += len(x_ND)
        maps.append(reduce(x_ND, "(c h p w q) d -> (c h w) d", "mean", c=crops, h=h, p=side, w=w, q=side))
        grids += [Grid(h, w)] * crops
    return Features(torch.cat(maps), tuple(grids), features.prefix_CPD)


def select(
    queries_MD: Float[Tensor, "M D"], keys_HD: Float[Tensor, "H D"], candidates: Sequence[Sequence[int]], top_k: int
) -> Int[Tensor, " kept"]:
    """Which high crops are kept, in ascending order: for each region the `top_k` with the largest dot product.

    Of equals the first is kept, on every device.

    Args:
        queries_MD: what the crops of each region are compared with; a single one is every region's.
        keys_HD: the high crops.
        candidates: for each region, the indices of its high crops.
        top_k: how many of them are kept.
    """
    allowed_MH = torch.zeros(len(candidates), len(keys_HD), dtype=torch.bool)
    for region, indices in enumerate(candidates):
        allowed_MH[region, list(indices)] = True
    scores_MH = (queries_MD[:, None] * keys_HD).sum(-1)
    scores_MH = torch.where(allowed_MH.to(keys_HD.device), scores_MH, -torch.inf)
    best_MK = scores_MH.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    return best_MK.flatten().sort().values


def _summaries(crops: Sequence[Float[Tensor, "N D"]]) -> Float[Tensor, "C D"]:
    """The mean token of each crop, in fp32 and without a gradient: crops are only compared by it."""
    return torch.stack([tokens_ND.detach().float().mean(0) for tokens_ND in crops])


def _lies_in(box: Box, region: Box) -> bool:
    """Whether the middle of a box lies in a region; of neighbouring regions without a gap, in exactly one."""
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    return region.left <= x < region.right and region.top <= y < region.bottom


def _keeps(config: DragonflyConfig, grid: Grid) -> bool:
    """Whether the inner connector makes as many tokens of a grid as it has."""
    try:
        return count_of(config.out_grid(grid)) == grid.count
    except GridError:
        return False
