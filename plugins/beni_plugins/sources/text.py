"""Plain text for language modelling: every token is a target, no template.

A .txt file is cut at line ends into stretches of at most `characters`; every character is in exactly one of them. A
.jsonl file has one document per line, under `text`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from beni.config import PartConfig
from beni.errors import DataError
from beni.interfaces import Source
from beni.sample import Sample, Turn


@dataclass(frozen=True, slots=True)
class TextFileConfig(PartConfig):
    argument: ClassVar[str] = "path"

    path: str = ""
    """A .txt or .jsonl file."""
    characters: int = 1024
    """Longest stretch of a .txt file."""


class TextFile(Source):
    """One split, train; use another file to judge."""

    beni_api = 1
    Config = TextFileConfig

    def split(self, name: str) -> Sequence[Sample] | None:
        if name != "train":
            return None
        path = Path(self.config.path)
        if not path.is_file():
            raise DataError(f"text: there is no file {path}")
        texts = _documents(path) if path.suffix == ".jsonl" else _stretches(path, self.config.characters)
        return [Sample(f"{path.stem}-{i}", (Turn("text", (text,)),)) for i, text in enumerate(texts)]


def _documents(path: Path) -> list[str]:
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            texts.append(json.loads(line)["text"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not an object with 'text'") from error
    return texts


def _stretches(path: Path, characters: int) -> list[str]:
    stretches: list[str] = [""]
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        for start in range(0, len(line), characters):
            piece = line[start : start + characters]
            if stretches[-1] and len(stretches[-1]) + len(piece) > characters:
                stretches.append("")
            stretches[-1] += piece
    return [text for text in stretches if text]
