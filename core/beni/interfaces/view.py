"""How an image is cut."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from beni.config import PartConfig
from beni.errors import ExportError
from beni.types import Crop, EncoderSpec, ImageLayout, Size


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

    def native(self, to: str, spec: EncoderSpec) -> Mapping[str, Any]:
        """This view in a class of Transformers that cuts pictures into several crops itself, for an export.

        Args:
            to: name of the class's family, as `beni export --to` has it.
            spec: of the only encoder.

        Returns:
            Fields of the class's configuration, and of its image processor's, that say how.

        Raises:
            ExportError: that class cuts in another way; says how.
        """
        raise ExportError(f"view {type(self).__name__} cuts pictures in another way than '{to}'")

    def bound(self, encoders: Mapping[str, EncoderSpec]) -> ImageLayout:
        """The layout of an image about which nothing is known."""
        return self.layout(self.largest(next(iter(encoders.values()))), encoders)
