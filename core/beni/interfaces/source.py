"""Where samples come from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from beni.config import PartConfig
from beni.sample import Sample


class Source(ABC):
    """Where samples come from: sequences with random access, one per split."""

    beni_api: ClassVar[int]
    Config: ClassVar[type[PartConfig]]
    eval_splits: ClassVar[tuple[str, ...]] = ("test",)
    """Splits that are judged at the end of a run, by default."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def split(self, name: str) -> Sequence[Sample] | None:
        """The samples of `train`, `val`, `test` or another split; None if there is no such split.

        What can only be seen when a sample is asked for may be told by `Sample.unusable` in its place.

        Raises:
            DataError: the data is not what it should be; the message says which file and item, and what is wrong.
        """
