"""Plain text for language modelling: every token is a target, no template.

A .txt file is cut at line ends into stretches of at most `characters`; every character is in exactly one of them. A
.jsonl file has one document per line, under `text`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from beni.config import PartConfig
from beni.data.files import read_jsonl, read_text
from beni.errors import ConfigError, DataError
from beni.interfaces import Source
from beni.sample import Sample, Turn


@dataclass(frozen=True, slots=True)
class TextFileConfig(PartConfig):
    argument: ClassVar[str] = "path"

    path: str = ""
    """A .txt or .jsonl file."""
    characters: int = 1024
    """Longest stretch of a .txt file."""

    def __post_init__(self) -> None:
        if self.characters < 1:
            raise ConfigError(f"source 'text', option 'characters' is {self.characters}; it must be at least 1")


class TextFile(Source):
    """One split, train; use another file to judge."""

    beni_api = 1
    Config = TextFileConfig

    def split(self, name: str) -> Sequence[Sample] | None:
        if name != "train":
            return None
        if not self.config.path:
            raise DataError("text needs a file: write text:PATH")
        path = Path(self.config.path)
        texts = _documents(path) if path.suffix == ".jsonl" else _stretches(path, self.config.characters)
        return [Sample(f"{path.stem}-{i}", (Turn("text", (text,)),)) for i, text in enumerate(texts)]


def _documents(path: Path) -> list[str]:
    texts = []
    for number, item in read_jsonl(path):
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise DataError(f"{path}, line {number}: not an object with a string 'text'")
        texts.append(item["text"])
    return texts


def _stretches(path: Path, characters: int) -> list[str]:
    stretches: list[str] = [""]
    for line in read_text(path).splitlines(keepends=True):
        for start in range(0, len(line), characters):
            piece = line[start : start + characters]
            if stretches[-1] and len(stretches[-1]) + len(piece) > characters:
                stretches.append("")
            stretches[-1] += piece
    return [text for text in stretches if text]
