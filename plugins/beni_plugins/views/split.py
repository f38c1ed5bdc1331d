"""The whole image, and the same image again in k×k tiles, each at the encoder's full resolution.

Every image has the same number of crops whatever its size: what wide images lose by being squashed, all of them lose
alike. Idefics2 calls it sub-image splitting (Laurençon et al. 2024, arXiv 2405.02246, section 4.2), S² a scale (Shi et
al. 2024, arXiv 2403.13043).
"""

from dataclasses import dataclass

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import View
from beni.types import Box, Crop, EncoderSpec, Size


@dataclass(frozen=True, slots=True)
class SplitConfig(PartConfig):
    tiles: int = 2
    """Tiles along each side."""
    overview: bool = True
    """Whether the whole image comes first, as one more crop."""

    def __post_init__(self) -> None:
        if self.tiles < 1:
            raise ConfigError(f"view 'split', option 'tiles': {self.tiles} is not a positive number of tiles")


class Split(View):
    """Overview, then tiles row by row; all of them squashed to the encoder's input."""

    beni_api = 1
    Config = SplitConfig
    needs_size = False

    def crops(self, size: Size, spec: EncoderSpec) -> tuple[Crop, ...]:
        canvas, count = spec.size, self.config.tiles
        across = [size.width * n / count for n in range(count + 1)]
        down = [size.height * n / count for n in range(count + 1)]
        tiles = tuple(
            Crop(
                canvas,
                box=Box(across[col], down[row], across[col + 1], down[row + 1]),
                valid=Box.of(canvas),
                level=1,
                cell=(row, col),
            )
            for row in range(count)
            for col in range(count)
        )
        overview = Crop(canvas, box=Box.of(size), valid=Box.of(canvas))
        return (overview, *tiles) if self.config.overview else tiles

    def largest(self, spec: EncoderSpec) -> Size:
        return spec.size
