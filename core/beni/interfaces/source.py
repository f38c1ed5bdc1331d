"""Where samples come from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from beni.config import PartConfig
from beni.sample import Sample


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a stream."""

    samples: list[Sample]
    """Items that no sample can be made of are `Sample.unusable`."""
    position: Any
    """Behind the last one, as plain JSON values."""


class Stream(ABC):
    """A split that is read in order, because nobody knows its length or has room for it.

    Another process than the one that made it may read it, from a position that a third one reached.
    """

    @abstractmethod
    def read(self, position: Any, count: int) -> Reading:
        """The next samples behind a position.

        Args:
            position: of an earlier reading, by this or by another process; None is the beginning.
            count: how many, at least 1; fewer are returned at the end of the split only.

        Raises:
            DataError: the stream cannot be read; says where and why.
        """


class Source(ABC):
    """Where samples come from: sequences with random access, or streams, one per split."""

    beni_api: ClassVar[int]
    Config: ClassVar[type[PartConfig]]
    eval_splits: ClassVar[tuple[str, ...]] = ("test",)
    """Splits that are judged at the end of a run, by default."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def split(self, name: str) -> Sequence[Sample] | Stream | None:
        """The samples of `train`, `val`, `test` or another split; None if there is no such split.

        What can only be seen when a sample is asked for may be told by `Sample.unusable` in its place.

        Raises:
            DataError: the data is not what it should be; the message says which file and item, and what is wrong.
        """
