"""What a part is. Everything a plugin author needs is in this file and in `beni.nn`.

A part is a class with a frozen dataclass `Config` nested in it and `beni_api = 1`. It knows nothing of FSDP, of
checkpoints, of the loop. Its config answers every question about *counts* as a pure function, because data workers need
the answers before any weight exists; the module does the computing.

    View           how an image of some size is cut into crops
    VisionEncoder  crops -> features
    Connector      features -> visual tokens: what grid a grid becomes, and what tokens a crop becomes
    Fusion         visual tokens ⇄ language model
    LanguageModel  where a causal LM and its tokenizer come from
    Source         where samples come from

Arranging crops, counting, packing, dummy documents and generation happen in core, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from beni.config import Part, PartConfig
from beni.errors import GridError, IncompatiblePartsError, PluginError
from beni.nn.merge import merge_tiles
from beni.nn.plan import CrossPlan
from beni.pretrained import Provenance, Startable, StartConfig
from beni.sample import NEWLINE_MARK, Sample
from beni.types import Crop, EncoderSpec, Features, Grid, ImageLayout, Size, VisualTokens, Windows, count_of

# --------------------------------------------------------------------------------------------------------------- views


class View(ABC):
    """How an image is cut. A crop is a box of the source and where it is drawn; core draws it."""

    beni_api: ClassVar[int]
    Config: ClassVar[type[PartConfig]]
    needs_size: bool = True
    """False where crops and counts are the same for images of every size: then headers need not be read."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        """The crops of an image of this size for one encoder; a pure function."""

    @abstractmethod
    def largest(self, spec: EncoderSpec) -> Size:
        """An image size with as many tokens as any image can get; plans images whose size is unknown."""

    def layout(self, size: Size, encoders: Mapping[str, EncoderSpec]) -> ImageLayout:
        """The crops for every encoder; a view whose tiles become one map says so here (`ImageLayout.merge`)."""
        return ImageLayout(size, {key: self.crops(size, spec) for key, spec in encoders.items()})

    def bound(self, encoders: Mapping[str, EncoderSpec]) -> ImageLayout:
        """The layout of an image about which nothing is known."""
        return self.layout(self.largest(next(iter(encoders.values()))), encoders)


# ------------------------------------------------------------------------------------------------------------ encoders


class VisionEncoder(nn.Module, ABC):
    """Crops to features. Never under `no_grad`: whether gradients flow is decided by what is trained.

    Args:
        config: the part's `Config`.
        spec: what `describe` said.
    """

    beni_api: ClassVar[int]
    Config: ClassVar[type[PartConfig]]

    def __init__(self, config: Any, spec: EncoderSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec

    @classmethod
    @abstractmethod
    def describe(cls, config: Any) -> EncoderSpec:
        """Sizes, strides and normalisation, without building weights."""

    @abstractmethod
    def forward(self, pixels_C3HW: Float[Tensor, "C 3 height width"]) -> Features:
        """Encode all crops of a batch; called exactly once per micro-batch."""

    def load_pretrained(self) -> Provenance | None:
        """Fill in published weights, if the config names any; None where training starts from scratch."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """The modules that are sharded one by one."""
        return ()


# ---------------------------------------------------------------------------------------------------------- connectors


class WindowSpec(NamedTuple):
    """What a connector keeps of the encoders' maps beside each visual token."""

    sizes: tuple[int, ...]
    """Tokens of each encoder under one visual token."""
    width: int
    """Their channels."""


@dataclass(frozen=True, slots=True)
class ConnectorConfig(StartConfig, ABC):
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

    def windows(self, encoders: Mapping[str, EncoderSpec]) -> WindowSpec | None:
        """The windows that `VisualTokens` will hold, or None where the connector keeps none."""
        return None


class Connector(Startable, ABC):
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
        tokens_VD = self.project(self.join(features))
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

    def _promised(self, tokens_VD: Float[Tensor, "V width"], declared: int, who: str) -> None:
        if tokens_VD.shape != (declared, self.out_width):
            raise PluginError(
                f"connector {type(self).__name__} returned {tuple(tokens_VD.shape)} for a batch of which its config "
                f"declared {declared} tokens of {self.out_width} channels: {who} must agree"
            )

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
            inputs = ", ".join(f"'{key}' {cols * s.stride}x{rows * s.stride}" for key, s in encoders.items())
            raise IncompatiblePartsError(f"{error} (an input of {inputs} pixels)") from error

    def blocks(self) -> Sequence[nn.Module]:
        """The modules that are sharded one by one; by default the connector is one unit."""
        return ()


def _no_project(self: Connector, features: Features) -> Tensor:
    raise NotImplementedError(f"{type(self).__name__} makes its tokens in `forward`, not crop by crop")


# ------------------------------------------------------------------------------------------------------------- fusions


Newline = Literal["none", "row", "block"]
"""Where newlines stand in an image's form in the text, beside those that its view asks for."""


class LLMSpec(NamedTuple):
    """What a fusion may know of the language model."""

    width: int
    layers: int


class VisualSpec(NamedTuple):
    """What a fusion may know of the visual tokens."""

    width: int
    """Channels, as `FusionConfig.visual_width` asked."""
    windows: WindowSpec | None = None
    """What the connector keeps beside them."""
    levels: int = 0
    """How many earlier layers of the encoders give these tokens as well (`VisualTokens.levels`)."""


Reads = Literal["nothing", "last", "run", "all"]
"""Which images a text position reads in the visual memory: the last one at or before it in its document; the run of
images without text between them that this one belongs to; all at or before it."""


@dataclass(frozen=True, slots=True)
class FusionConfig(StartConfig):
    """The counting half of a fusion; the base class is inline fusion."""

    new_tokens: ClassVar[tuple[str, ...]] = (NEWLINE_MARK,)
    """Tokens that `spell` may write and that need an embedding of their own."""

    needs_windows: ClassVar[bool] = False
    """Whether inserted blocks read what lies under visual tokens in the encoders' maps."""

    needs_levels: ClassVar[bool] = False
    """Whether the encoders' layers are connected one by one: the last one chosen gives the visual tokens, the others
    `FusionContext.levels`."""

    @property
    def reads(self) -> Reads:
        """Which images a text position reads in the visual memory."""
        return "nothing"

    @property
    def uses_context(self) -> bool:
        """Whether inserted blocks need a `FusionContext`."""
        return self.needs_windows or self.needs_levels or self.reads != "nothing"

    def spell(self, layout: ImageLayout, shapes: Sequence[Grid | int]) -> list[str | int]:
        """An image's form in the text: strings, and numbers of positions that visual tokens take.

        `["<Img>", 256, "</Img>"]` gives an image 256 positions between two markers; a fusion that keeps images out of
        the text writes one placeholder instead.

        Args:
            layout: how the image is cut.
            shapes: of its blocks, as `ConnectorConfig.shapes` says.
        """
        return spell_blocks(layout, shapes)

    def marks(self, layout: ImageLayout, shapes: Sequence[Grid | int]) -> tuple[str, ...]:
        """Those of the new tokens that a model writes which cuts and connects images like this one.

        The others get no embedding: what never occurs is no parameter.
        """
        written = self.spell(layout, shapes)
        return tuple(token for token in self.new_tokens if token in written)

    def visual_width(self, llm: LLMSpec, encoder_width: int) -> int:
        """Channels the fusion wants of visual tokens."""
        return llm.width


def spell_blocks(layout: ImageLayout, shapes: Sequence[Grid | int], newline: Newline = "none") -> list[str | int]:
    """An image's blocks one after another, with newlines where the layout or the fusion wants them.

    Args:
        layout: a merged map, its last block, ends its rows with newlines if `layout.merge` says so.
        shapes: of its blocks.
        newline: row: also after every row of every block that is a grid (Cambrian-1); block: also behind every block
            that does not end with one (Dragonfly).
    """
    text: list[str | int] = []
    for index, shape in enumerate(shapes):
        merged = layout.merge is not None and layout.merge.newline and index == len(shapes) - 1
        if isinstance(shape, Grid) and (merged or newline == "row"):
            text += [shape.cols, NEWLINE_MARK] * shape.rows
        else:
            text += [count_of(shape), NEWLINE_MARK] if newline == "block" else [count_of(shape)]
    return text


@dataclass(frozen=True)
class FusionContext:
    """What the inserted blocks of a deep fusion see of a batch; explicit, one per batch.

    For cross-attention, `memory_MD` is the visual memory and `plan` says which slice of it each text position reads; an
    empty slice gives exactly zero. For fusions that work on visual tokens inside the LLM, `at_V` are their positions
    among all text positions (B·T), `windows` what the connector kept for them, and `levels` what earlier layers of the
    encoders give for them.
    """

    memory_MD: Float[Tensor, "M D"]
    plan: CrossPlan
    at_V: Int[Tensor, " V"]
    windows: Windows | None = None
    levels: tuple[Float[Tensor, "V D"], ...] = ()

    def places(self, length: int) -> tuple[Int[Tensor, " V"], Int[Tensor, " V"]]:
        """Row, and position in a row of this length, of each visual token."""
        return self.at_V // length, self.at_V % length

    def step(self, length: int) -> "FusionContext":
        """What the next `length` tokens of each row see, for decoding with a cache: no visual token is among them."""
        device = self.memory_MD.device
        none_V = self.at_V[:0]
        windows = None if self.windows is None else self.windows.at(none_V)
        levels = tuple(level_VD[none_V] for level_VD in self.levels)
        return FusionContext(self.memory_MD, self.plan.step(length).to(device), none_V, windows, levels)


class Insert(NamedTuple):
    """A block that runs before or after a decoder layer: `block(hidden_BTD, context) -> hidden_BTD`."""

    block: nn.Module
    before: bool = True


class Fusion(Startable):
    """How visual tokens meet the language model. The base class is inline: they take positions in the text.

    Args:
        config: the part's `Config`.
        llm: the language model's sizes.
        visual: what the connector makes.
    """

    beni_api: ClassVar[int]
    Config: ClassVar[type[FusionConfig]]

    def __init__(self, config: Any, llm: LLMSpec, visual: VisualSpec) -> None:
        super().__init__()
        self.config = config
        self.llm = llm
        self.visual = visual

    def embed(
        self, embeds_TD: Float[Tensor, "T D"], visual_VE: Float[Tensor, "V E"], at_V: Int[Tensor, " V"]
    ) -> Float[Tensor, "T D"]:
        """Put visual tokens into the flat text embeddings at the positions that `spell` reserved for them."""
        return embeds_TD.index_put((at_V,), visual_VE.to(embeds_TD.dtype))

    def inserts(self) -> Mapping[int, Insert]:
        """Blocks to run beside decoder layers, by the layer's index."""
        return {}

    def blocks(self) -> Sequence[nn.Module]:
        """The modules that are sharded one by one."""
        return [insert.block for insert in self.inserts().values()]

    @classmethod
    def check(cls, config: Any, llm: LLMSpec, visual: VisualSpec) -> None:
        """Refuse a language model or visual tokens this fusion cannot work with, before it is allocated."""


# ----------------------------------------------------------------------------------------------------- language models


class LanguageModel(ABC):
    """Where a causal LM comes from. Not a module: the model itself is any Hugging Face causal LM, untouched."""

    beni_api: ClassVar[int]
    Config: ClassVar[type[PartConfig]]
    pretrained: ClassVar[bool]
    """Whether `build` returns trained weights (then the LLM is frozen by default)."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """The tokenizer. `texts` are the run's training texts, for an LLM that learns its vocabulary from them."""

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, Provenance | None]:
        """The model in fp32 and where its weights came from."""


# ------------------------------------------------------------------------------------------------------------- sources


class Source(ABC):
    """Where samples come from: sequences with random access, one per split."""

    beni_api: ClassVar[int]
    Config: ClassVar[type[PartConfig]]
    eval_splits: ClassVar[tuple[str, ...]] = ("test",)
    """Splits that are judged at the end of a run, by default."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def split(self, name: str) -> Sequence[Sample] | None:
        """The samples of `train`, `val`, `test` or another split; None if there is no such split.

        Raises:
            DataError: the data is not what it should be; the message says which file and item, and what is wrong.
        """


INTERFACES: dict[str, type] = {
    "encoder": VisionEncoder,
    "connector": Connector,
    "fusion": Fusion,
    "view": View,
    "llm": LanguageModel,
    "source": Source,
}


def load(kind: str, part: Part) -> type:
    """The class of a part, checked against the interface of its kind.

    Raises:
        PluginError: the class is not one.
    """
    cls = part.load()
    if not issubclass(cls, INTERFACES[kind]):
        raise PluginError(
            f"{kind} '{part.plugin.name}' ({part.plugin.target}) does not derive from "
            f"beni.interfaces.{INTERFACES[kind].__name__}"
        )
    return cls
