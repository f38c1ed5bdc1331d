"""What a part is in a class of Transformers that computes the same: what an export asks of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class NativeTower:
    """An encoder as `AutoModel.from_config` builds it."""

    config: PreTrainedConfig
    state: Mapping[str, Tensor]
    """The whole state dict of that model."""
    layers: tuple[int, ...]
    """The hidden states that are read, joined by channel in this order, counted from the end: -2 is the last but
    one. Empty: the model's `last_hidden_state`, behind its final norm if it has one."""


@dataclass(frozen=True, slots=True)
class NativeProjector:
    """A connector as the projector of a native class."""

    options: Mapping[str, Any]
    """Fields of the class's configuration that are about it."""
    state: Mapping[str, Tensor]
    """Its state dict, by the names inside the projector."""
