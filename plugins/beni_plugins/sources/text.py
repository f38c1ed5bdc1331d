"""Plain text for language modelling: every token is a target, no template.

A .txt file is cut at line ends into stretches of at most `characters`; every character is in exactly one of them. A
.jsonl file has one document per line, under `text`. The end of either may be held out for validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from beni.config import PartConfig
from beni.data.files import read_jsonl, read_text
from beni.errors import ConfigError, DataError
from beni.interfaces import Source
from beni.sample import Sample, Turn

Whole = TypeVar("Whole", str, list[str])


@dataclass(frozen=True, slots=True)
class TextFileConfig(PartConfig):
    argument: ClassVar[str] = "path"

    path: str = ""
    """A .txt or .jsonl file."""
    characters: int = 1024
    """Longest stretch of a .txt file."""
    validation: float = 0.0
    """Share of the characters of a .txt file, or of the documents of a .jsonl file, that is not trained on: its end."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigError(f"source 'text', option 'validation' is {self.validation}; it must be in [0, 1)")
        if self.characters < 1:
            raise ConfigError(f"source 'text', option 'characters' is {self.characters}; it must be at least 1")


class TextFile(Source):
    """Splits: train, and val where a share is held out."""

    beni_api = 1
    Config = TextFileConfig

    def split(self, name: str) -> Sequence[Sample] | None:
        if name not in ("train", "val") or (name == "val" and not self.config.validation):
            return None
        if not self.config.path:
            raise DataError("text needs a file: write text:PATH")
        path = Path(self.config.path)
        if path.suffix == ".jsonl":
            texts = self._part(_documents(path), name)
        else:
            texts = _stretches(self._part(read_text(path), name), self.config.characters)
        names = f"{path.stem}-val" if name == "val" else path.stem
        return [Sample(f"{names}-{i}", (Turn("text", (text,)),)) for i, text in enumerate(texts)]

    def _part(self, whole: Whole, name: str) -> Whole:
        """The beginning, which is trained on, or the end."""
        cut = round(len(whole) * (1 - self.config.validation))
        return whole[cut:] if name == "val" else whole[:cut]


def _documents(path: Path) -> list[str]:
    texts = []
    for number, item in read_jsonl(path):
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise DataError(f"{path}, line {number}: not an object with a string 'text'")
        texts.append(item["text"])
    return texts


def _stretches(text: str, characters: int) -> list[str]:
    stretches: list[str] = [""]
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), characters):
            piece = line[start : start + characters]
            if stretches[-1] and len(stretches[-1]) + len(piece) > characters:
                stretches.append("")
            stretches[-1] += piece
    return [text for text in stretches if text]
