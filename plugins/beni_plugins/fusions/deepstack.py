"""DeepStack: visual tokens take positions in the text, and what earlier layers of the encoder give for them is added to
the hidden states at these positions, layer by layer.

Each of the encoder's chosen layers has a connector of its own; the last one's tokens enter the LLM with the text.

References: Meng et al. 2024, arXiv 2406.04334; the kind with layers of the encoder is Qwen3-VL's (transformers,
models/qwen3_vl/modeling_qwen3_vl.py, Qwen3VLTextModel), which adds the first behind decoder layer 0, the second behind
layer 1 and so on, as is the default here.

Shapes: B rows, T positions, D the LLM's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import ConfigError
from beni.interfaces import Fusion, FusionContext, Insert, InTextConfig, LLMSpec, VisualSpec


@dataclass(frozen=True, slots=True)
class DeepStackConfig(InTextConfig):
    start: int = 0
    """The decoder layer behind which the first of the encoder's layers is added, counted from 0."""
    stride: int = 1
    """Each further one is added so many decoder layers later."""

    needs_levels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        InTextConfig.__post_init__(self)
        if self.start < 0 or self.stride < 1:
            raise ConfigError("fusion 'deepstack': --fusion.stride must be at least 1, start at least 0")

    def behind(self, levels: int) -> range:
        """The decoder layers behind which so many of the encoder's layers are added."""
        return range(self.start, self.start + levels * self.stride, self.stride)


class DeepStack(Fusion):
    """Inline, and an addition behind some decoder layers; it has no parameters."""

    beni_api = 1
    Config = DeepStackConfig

    def __init__(self, config: Any, llm: LLMSpec, visual: VisualSpec) -> None:
        super().__init__(config, llm, visual)
        self._behind = config.behind(visual.levels)
        self.additions = nn.ModuleList(Addition(level) for level in range(visual.levels))

    def inserts(self) -> Mapping[int, Insert]:
        return {layer: Insert(block, before=False) for layer, block in zip(self._behind, self.additions, strict=True)}

    @classmethod
    def check(cls, config: Any, llm: LLMSpec, visual: VisualSpec) -> None:
        last = config.behind(visual.levels)[-1]
        if last > llm.layers - 2:  # behind the last decoder layer visual tokens reach nothing
            raise ConfigError(
                f"fusion 'deepstack' would add the last of {visual.levels} layers of the encoder behind decoder layer "
                f"{last}, but of the LLM's {llm.layers}, numbered from 0, {llm.layers - 2} is the last behind which it "
                f"reaches the text: choose fewer layers of the encoder, or lower --fusion.start or --fusion.stride"
            )


class Addition(nn.Module):
    """Adds one of the encoder's layers at the visual tokens."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def forward(self, x_BTD: Float[Tensor, "B T D"], context: FusionContext) -> Float[Tensor, "B T D"]:
        added_VD = context.levels[self.level].to(x_BTD.dtype)
        return x_BTD.index_put(context.places(x_BTD.shape[1]), added_VD, accumulate=True)
