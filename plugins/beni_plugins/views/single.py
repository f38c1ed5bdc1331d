"""One crop per image: squashed to the encoder's input, or padded to keep the aspect ratio."""

from dataclasses import dataclass
from typing import Literal

from beni.config import PartConfig
from beni.interfaces import View
from beni.types import Box, Crop, EncoderSpec, Size


@dataclass(frozen=True, slots=True)
class SingleConfig(PartConfig):
    fit: Literal["squash", "pad"] = "squash"
    """squash: resize to the encoder's input, distorting the aspect ratio; pad: keep it, centred on the mean colour."""


class Single(View):
    """The whole image as one crop (LLaVA-1.5 pads, most others squash)."""

    beni_api = 1
    Config = SingleConfig
    needs_size = False

    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        canvas = spec.size
        return (Crop(canvas, box=Box.of(size), valid=self._valid(size, canvas)),)

    def largest(self, spec: EncoderSpec) -> Size:
        return spec.size

    def _valid(self, size: Size, canvas: Size) -> Box:
        if self.config.fit == "squash":
            return Box.of(canvas)
        scale = min(canvas.width / size.width, canvas.height / size.height)
        width, height = max(1, round(size.width * scale)), max(1, round(size.height * scale))
        left, top = (canvas.width - width) // 2, (canvas.height - height) // 2
        return Box(left, top, left + width, top + height)
