"""Crops to features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from beni.config import PartConfig
from beni.errors import ExportError
from beni.interfaces.native import NativeTower
from beni.pretrained import Provenance
from beni.types import EncoderSpec, Features


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

    def native(self) -> NativeTower:
        """This encoder as a vision model of Transformers, for an export.

        Raises:
            ExportError: it is none, or is read in a way that the native classes have not; says which.
        """
        raise ExportError(
            f"encoder {type(self).__name__} is no vision model of Transformers: train with --encoder hf:MODEL (an "
            f"encoder of your own that is one says so in its method `native`)"
        )

    def blocks(self) -> Sequence[nn.Module]:
        """The modules that are sharded one by one."""
        return ()
