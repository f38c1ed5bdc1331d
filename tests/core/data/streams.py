"""A stream for tests."""

from collections.abc import Sequence
from typing import Any

from beni.errors import BeniError, DataError
from beni.interfaces import Reading, Stream
from beni.sample import Sample


class ListStream(Stream):
    """Samples that are read in order; a position is how many of them are read.

    Args:
        samples: all of it.
        breaks_at: reading behind so many of them fails.
        kind: of the error.
    """

    def __init__(
        self, samples: Sequence[Sample], breaks_at: int | None = None, kind: type[BeniError] = DataError
    ) -> None:
        self.samples = list(samples)
        self.breaks_at = breaks_at
        self.kind = kind

    def read(self, position: Any, count: int) -> Reading:
        start = position or 0
        if self.breaks_at is not None and start + count > self.breaks_at:
            raise self.kind(f"the stream is broken behind item {self.breaks_at}")
        found = self.samples[start : start + count]
        return Reading(found, start + len(found))
