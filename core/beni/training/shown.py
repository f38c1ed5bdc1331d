"""The images that a run shows: those of training, validation and judging, and the blank ones."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from beni.config import DataConfig
from beni.data.batch import dummy_document
from beni.data.document import Composer, DocumentImage
from beni.data.loader import Rows
from beni.data.spec import judged, validation
from beni.eval.judge import blanked, subset
from beni.sample import Sample

Group = tuple[Sequence[Sample], Sequence[int]]
"""Samples, and which of them are shown."""


class Place(NamedTuple):
    """Where an image is: small, for there may be millions."""

    group: int
    """-1: the image that stands in rows without any."""
    sample: int
    image: int


class Shown:
    """Images by their place; what a data worker holds.

    Args:
        composer: says how they are cut.
        groups: whose images they are.
    """

    def __init__(self, composer: Composer, groups: Sequence[Group]) -> None:
        self.composer = composer
        self.groups = list(groups)

    @classmethod
    def trained(cls, rows: Rows) -> "Shown":
        """What rows may show."""
        groups: list[Group] = [
            (samples, lengths.usable.tolist()) for samples, lengths in zip(rows.sources, rows.plan.lengths, strict=True)
        ]
        return cls(rows.composer, groups)

    def and_judged(self, data: DataConfig) -> "Shown":
        """These, and those of what is validated and judged, with images and blind."""
        items = [subset(samples, data.eval_limit) for samples in judged(data.eval_data, data.data).values()]
        blind = [[blanked(sample, self.composer) for sample in samples] for samples in items]
        groups = [(samples, range(len(samples))) for samples in (*validation(data.data), *items, *blind)]
        return Shown(self.composer, [*self.groups, *groups])

    def __iter__(self) -> Iterator[tuple[Place, str | bytes]]:
        """Every place, and the key of the image there; an image may have several."""
        yield Place(-1, 0, 0), dummy_document(self.composer).images[0].ref.key
        for number, (samples, indices) in enumerate(self.groups):
            for index in indices:
                for image, ref in enumerate(samples[index].images):
                    yield Place(number, index, image), ref.key

    def find(self, place: Place) -> DocumentImage:
        """The image at a place, and how it is cut.

        Raises:
            ImageError: its size cannot be read.
        """
        if place.group < 0:
            return dummy_document(self.composer).images[0]
        ref = self.groups[place.group][0][place.sample].images[place.image]
        return DocumentImage(ref, 0, self.composer.layout(ref), ())
