"""Visual tokens and the language model: where they stand in the text, and what blocks inside it see of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import register_dataclass

from beni.errors import ConfigError, IncompatiblePartsError
from beni.interfaces.connector import WindowSpec
from beni.nn.plan import CrossPlan
from beni.pretrained import Loadable, LoadableConfig
from beni.sample import IMAGE_MARK, NEWLINE_MARK, VISUAL_MARK
from beni.types import Grid, ImageLayout, Windows, count_of

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
class FusionConfig(LoadableConfig):
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


@dataclass(frozen=True, slots=True)
class InTextConfig(FusionConfig):
    """Options of a fusion whose visual tokens take positions in the text."""

    newline: Newline = field(default="none", kw_only=True)
    """Learned newlines among the visual tokens. none: only those that the view asks for; row: behind every row of every
    block that is a grid (Cambrian-1); block: behind every block (Dragonfly)."""
    before: tuple[str, ...] = field(default=(), kw_only=True)
    """Tokens in front of each image, as in `<img>`, with embeddings that are learned."""
    after: tuple[str, ...] = field(default=(), kw_only=True)
    """Tokens behind each image, as in `</img>`; one that also stands in front of it has the same embedding there."""

    def __post_init__(self) -> None:
        for text in (*self.before, *self.after):
            if not text or text != text.strip() or text in (IMAGE_MARK, VISUAL_MARK, NEWLINE_MARK):
                raise ConfigError(
                    f"--fusion.before and --fusion.after: '{text}' cannot be a token around images: name one that is "
                    f"not empty, has no space around it and means nothing else, as <img>"
                )

    def marks(self, layout: ImageLayout, shapes: Sequence[Grid | int]) -> tuple[str, ...]:
        return *FusionConfig.marks(self, layout, shapes), *dict.fromkeys((*self.before, *self.after))

    def spell(self, layout: ImageLayout, shapes: Sequence[Grid | int]) -> list[str | int]:
        if self.newline == "row" and not any(isinstance(shape, Grid) for shape in shapes):
            raise IncompatiblePartsError(
                "the fusion wants a newline behind every row of visual tokens, but the connector's tokens have no "
                "rows: use --fusion.newline block, or a connector that keeps a grid (mlp, concat)"
            )
        return [*self.before, *spell_blocks(layout, shapes, self.newline), *self.after]


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


register_dataclass(FusionContext)  # as the others are that modules hand on (`beni.types`)


class Insert(NamedTuple):
    """A block that runs before or after a decoder layer: `block(hidden_BTD, context) -> hidden_BTD`."""

    block: nn.Module
    before: bool = True


class Fusion(Loadable):
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
