"""Features to visual tokens: what grid a grid becomes, and what tokens a crop becomes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import ExportError, GridError, IncompatiblePartsError, PluginError
from beni.interfaces.native import NativeProjector
from beni.interfaces.view import View
from beni.nn.looks import listening
from beni.nn.merge import merge_tiles
from beni.nn.places import Place, crop_places, merged_places
from beni.pretrained import Loadable, LoadableConfig
from beni.types import EncoderSpec, Features, Grid, ImageLayout, VisualTokens, Windows, count_of


class WindowSpec(NamedTuple):
    """What a connector keeps of the encoders' maps beside each visual token."""

    sizes: tuple[int, ...]
    """Tokens of each encoder under one visual token."""
    width: int
    """Their channels."""


@dataclass(frozen=True, slots=True)
class ConnectorConfig(LoadableConfig, ABC):
    """The counting half of a connector."""

    needs_size: ClassVar[bool] = False
    """Whether counts depend on an image's size where the view's crops do not (padding that is left out)."""

    @property
    def selects(self) -> bool:
        """Whether the picture decides which of its places become visual tokens."""
        return False

    @abstractmethod
    def out_grid(self, grid: Grid) -> Grid | int:
        """What a crop's grid becomes: another grid, or a number of tokens that have no place.

        Raises:
            GridError: the grid does not divide; it names one that does.
        """

    def shapes(self, layout: ImageLayout, encoders: Mapping[str, EncoderSpec]) -> tuple[Grid | int, ...]:
        """What each block of an image is: a grid, or a number of tokens that have no place.

        By default a block is a crop of the first encoder, or the map that `layout.merge` makes of the last ones.

        Raises:
            IncompatiblePartsError: tokens without a place cannot be put together to a map.
        """
        crops, merge = self.outs(layout, encoders), layout.merge
        if merge is None:
            return crops
        tile = crops[-1]
        if not isinstance(tile, Grid):
            raise IncompatiblePartsError(
                f"the view puts the tiles of an image together to a map, but the connector makes {tile} tokens of each "
                f"that have no place in one: use --view.merge flat, or a connector that keeps a grid (mlp, concat)"
            )
        return *crops[: -merge.tiles.count], merge.shape(tile, layout.size)

    def outs(self, layout: ImageLayout, encoders: Mapping[str, EncoderSpec]) -> tuple[Grid | int, ...]:
        """What each crop of the first encoder becomes, before any are merged."""
        key = next(iter(encoders))
        return tuple(self.out_grid(encoders[key].grid(crop.canvas)) for crop in layout.crops[key])

    def counts(self, layout: ImageLayout, encoders: Mapping[str, EncoderSpec]) -> tuple[int, ...]:
        """Visual tokens of each block of an image."""
        return tuple(map(count_of, self.shapes(layout, encoders)))

    def places(self, layout: ImageLayout, encoders: Mapping[str, EncoderSpec]) -> list[Place | None]:
        """Where in the picture each visual token is, None where that cannot be told from the layout; shows heat maps.

        By default a block that is a grid covers its crop, or the tiles that were merged. A part whose grid covers
        anything else says so here.
        """
        [key, *_] = encoders
        spec, crops, shapes, merge = encoders[key], layout.crops[key], self.shapes(layout, encoders), layout.merge
        single = len(crops) if merge is None else len(crops) - merge.tiles.count
        if len(shapes) != single + (merge is not None):
            return [None] * sum(map(count_of, shapes))
        found: list[Place | None] = []
        for shape, crop in zip(shapes, crops[:single], strict=False):
            found += crop_places(crop, shape, spec) if isinstance(shape, Grid) else [None] * shape
        tile = self.outs(layout, encoders)[-1]
        if merge is not None and isinstance(tile, Grid):
            found += merged_places(layout, crops[single:], tile, spec)
        return found

    def windows(self, encoders: Mapping[str, EncoderSpec]) -> WindowSpec | None:
        """The windows that `VisualTokens` will hold, or None where the connector keeps none."""
        return None


class Connector(Loadable, ABC):
    """Features to visual tokens. Most connectors implement `project` alone.

    Args:
        config: the part's `Config`.
        encoders: what each encoder says of itself.
        out_width: channels that the fusion wants.
    """

    beni_api: ClassVar[int]
    Config: ClassVar[type[ConnectorConfig]]

    def __init__(self, config: Any, encoders: Mapping[str, EncoderSpec], out_width: int) -> None:
        super().__init__()
        self.config = config
        self.encoders = dict(encoders)
        self.in_width = sum(spec.width for spec in encoders.values())
        self.out_width = out_width

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A class that overrides `forward` as a whole is complete without `project`."""
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls) and getattr(cls.project, "__isabstractmethod__", False):
            cls.project = _no_project  # type: ignore[method-assign]

    @abstractmethod
    def project(self, features: Features) -> Float[Tensor, "V out"]:
        """The visual tokens of all crops, crop after crop, each as many as `config.out_grid` said."""

    def forward(self, features: Mapping[str, Features], layouts: Sequence[ImageLayout]) -> VisualTokens:
        """Join the encoders, project, check the count that was promised, and put tiles together to maps.

        Raises:
            PluginError: the part returned another number of tokens than its config declared.
        """
        joined = self.join(features)
        if listener := listening():
            merged = any(layout.merge is not None for layout in layouts)
            listener.about(None if merged else joined.grids)
        with self._noted(joined):
            tokens_VD = self.project(joined)
        outs = [self.config.outs(layout, self.encoders) for layout in layouts]
        self._promised(tokens_VD, sum(count_of(out) for crops in outs for out in crops), "`project` and `out_grid`")
        return self.deliver(merge_tiles(tokens_VD, outs, layouts), layouts)

    def deliver(
        self, tokens_VD: Float[Tensor, "V out"], layouts: Sequence[ImageLayout], windows: Windows | None = None
    ) -> VisualTokens:
        """What `forward` returns, once its count is what `config.shapes` promised; for those that override both.

        Raises:
            PluginError: it is another.
        """
        counts = tuple(self.config.counts(layout, self.encoders) for layout in layouts)
        self._promised(tokens_VD, sum(map(sum, counts)), "`forward` and `shapes`")
        return VisualTokens(tokens_VD, counts, windows)

    def _promised(self, tokens_VD: Tensor, declared: int, who: str) -> None:
        if tokens_VD.shape == (declared, self.out_width):
            return
        if tokens_VD.ndim != 2:
            wrong = "all crops' tokens come in one dimension, crop after crop (`.flatten(0, 1)`)"
        else:
            wrong = f"{who} must agree" if len(tokens_VD) != declared else "the last dimension must be `self.out_width`"
        raise PluginError(
            f"connector {type(self).__name__} returned {tuple(tokens_VD.shape)} for a batch of which its config "
            f"declared {declared} tokens of {self.out_width} channels: {wrong}"
        )

    @contextmanager
    def _noted(self, features: Features) -> Iterator[None]:
        """What a part raises says what the part was given: a traceback shows the line, not the widths."""
        try:
            yield
        except Exception as error:
            error.add_note(
                f"in the connector {type(self).__name__}, of features {tuple(features.tokens_ND.shape)}: "
                f"`self.in_width` is {self.in_width}, `self.out_width` {self.out_width}"
            )
            raise

    def join(self, features: Mapping[str, Features]) -> Features:
        """One encoder's features, or several encoders' concatenated by channel where their grids agree."""
        first, *others = (features[key] for key in self.encoders)
        if not others:
            return first
        return Features(torch.cat([f.tokens_ND for f in (first, *others)], dim=-1), first.grids)

    @classmethod
    def check(cls, config: Any, view: View, encoders: Mapping[str, EncoderSpec]) -> None:
        """Refuse encoders whose grids this connector cannot join or divide, before anything is allocated.

        Raises:
            IncompatiblePartsError: names the grids, and an input size that would do.
        """
        grids = {key: spec.grid(spec.size) for key, spec in encoders.items()}
        if len(set(grids.values())) > 1:
            shown = ", ".join(f"{key} {grid}" for key, grid in grids.items())
            raise IncompatiblePartsError(
                f"connector {cls.__name__} joins encoders by channel and needs equal grids, these have {shown}: choose "
                f"encoders or input sizes whose grids agree"
            )
        try:
            config.shapes(view.bound(encoders), encoders)
        except GridError as error:
            if error.nearest is None:
                raise
            rows, cols = error.nearest
            several = len(encoders) > 1
            inputs = (_asked_for(f".{key}" * several, cols * e.stride, rows * e.stride) for key, e in encoders.items())
            raise IncompatiblePartsError(f"{error} ({', '.join(inputs)})") from error

    def native(self, to: str) -> NativeProjector:
        """This connector as the projector of a class of Transformers, for an export.

        Args:
            to: name of the class's family, as `beni export --to` has it: llava, llava_next, idefics3.

        Raises:
            ExportError: that class's projector computes something else; says what.
        """
        raise ExportError(f"connector {type(self).__name__} computes something else than the projector of '{to}'")

    def blocks(self) -> Sequence[nn.Module]:
        """The modules that are sharded one by one; by default the connector is one unit."""
        return ()


def _asked_for(key: str, width: int, height: int) -> str:
    """An input size, and the option that most encoders have for one that is square."""
    return f"an input of {width}x{height} pixels" + (f": --encoder{key}.size {width}" if width == height else "")


def _no_project(self: Connector, features: Features) -> Tensor:
    raise NotImplementedError(f"{type(self).__name__} makes its tokens in `forward`, not crop by crop")
