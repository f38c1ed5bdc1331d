"""Cambrian-1's aggregation inside the LLM: between layers, visual tokens look again at what lies under them.

Visual tokens take positions in the text, as with inline fusion. Behind every `stride`-th decoder layer each of them is
a query over its window of the encoders' maps, the very ones that the connector `sva` read.

Reference: cambrian-mllm/cambrian, cambrian/model/language_model/cambrian_llama.py (CambrianLlamaModel.forward). Its GPU
training never runs these layers; here they are trained wherever the model is. None follows the last decoder layer, from
where visual tokens reach nothing.

Shapes: B rows, T positions, D the LLM's width, V visual tokens in the text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import ConfigError
from beni.interfaces import Fusion, FusionContext, Insert, InTextConfig, LLMSpec, VisualSpec
from beni.nn.aggregator import SEPARATE, SpatialAggregator
from beni.weights import renamed


@dataclass(frozen=True, slots=True)
class AggregationConfig(InTextConfig):
    start: int = 0
    """The first decoder layer that has an aggregator behind it, counted from 0."""
    stride: int = 1
    """An aggregator behind every n-th layer from there on; 3 in the reference's 8B model."""
    count: int = 0
    """At most so many aggregators, 0: as many as fit; 10 in the reference's 8B model."""
    variant: Literal["joint", "sep"] = "joint"
    """joint: one attention over all encoders' tokens; sep: one for each encoder, then a weighted sum."""
    heads: int = 4
    """Attention heads, a divisor of the connector's width; 16 in the reference."""
    depth: int = 1
    """Layers of an aggregator."""

    needs_windows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        InTextConfig.__post_init__(self)
        if min(self.start, self.count) < 0 or min(self.stride, self.heads, self.depth) < 1:
            raise ConfigError(
                "fusion 'sva': --fusion.stride, heads and depth must be at least 1, start and count at least 0"
            )

    def behind(self, layers: int) -> range:
        """The decoder layers, of so many, that have an aggregator behind them."""
        found = range(self.start, layers - 1, self.stride)
        return found[: self.count] if self.count else found


class Aggregation(Fusion):
    """Inline, and an aggregator behind some decoder layers."""

    beni_api = 1
    Config = AggregationConfig

    def __init__(self, config: Any, llm: LLMSpec, visual: VisualSpec) -> None:
        super().__init__(config, llm, visual)
        self.layers = nn.ModuleDict(
            {str(index): Aggregator(config, llm, visual) for index in config.behind(llm.layers)}
        )

    def inserts(self) -> Mapping[int, Insert]:
        return {int(index): Insert(block, before=False) for index, block in self.layers.items()}

    def convert_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cambrian-1's `vision_sampler_layers`, which are numbered without regard to the layers they follow."""
        rules = {}
        for index, layer in enumerate(self.layers):
            rules[rf"vision_sampler_layers\.{index}\.{SEPARATE}"] = rf"layers.{layer}.sampler.\1.\2"
            rules[rf"vision_sampler_layers\.{index}\.(.+)"] = rf"layers.{layer}.sampler.\1"
        return renamed(state, rules)

    @classmethod
    def check(cls, config: Any, llm: LLMSpec, visual: VisualSpec) -> None:
        if not config.behind(llm.layers):
            raise ConfigError(
                f"fusion 'sva' has no place behind layer {config.start} of {llm.layers} layers, numbered from 0, the "
                f"last of which is left out: lower --fusion.start, or use --fusion inline"
            )
        assert visual.windows is not None, "`needs_windows` was checked when the parts were chosen"
        if visual.windows.width % config.heads:
            raise ConfigError(
                f"fusion 'sva': --fusion.heads {config.heads} do not divide the {visual.windows.width} channels that "
                f"the connector keeps (--connector.width)"
            )


class Aggregator(nn.Module):
    """Replaces the hidden states at visual tokens by what they become after reading their windows."""

    def __init__(self, config: AggregationConfig, llm: LLMSpec, visual: VisualSpec) -> None:
        super().__init__()
        assert visual.windows is not None
        sizes, width = visual.windows
        self.sampler = SpatialAggregator(llm.width, sizes, width, config.heads, config.depth, config.variant)

    def forward(self, x_BTD: Float[Tensor, "B T D"], context: FusionContext) -> Float[Tensor, "B T D"]:
        assert context.windows is not None
        at = context.places(x_BTD.shape[1])
        return x_BTD.index_put(at, self.sampler(x_BTD[at], context.windows))
