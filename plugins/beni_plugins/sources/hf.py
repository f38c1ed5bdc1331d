"""Any dataset that `datasets` can read: a hub id, a local folder, or a parquet, JSON, CSV or arrow file.

Rows hold either a conversation (a column of {role | from, content | value} turns) or a question and an answer; images
stand in a column of one image or of a list. Which columns these are is told by options or by their usual names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets

from beni.config import PartConfig
from beni.errors import DataError
from beni.interfaces import Source
from beni.sample import ROLES, ImageRef, Sample, Turn, image_ref, split_marks

USUAL = {
    "image": ("images", "image", "img"),
    "question": ("question", "query", "instruction", "prompt", "problem"),
    "answer": ("answer", "answers", "label", "response", "output", "caption", "text"),
    "talk": ("messages", "conversations", "texts", "conversation"),
}
"""Column names that are recognised, first match wins."""
LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


@dataclass(frozen=True, slots=True)
class HfDatasetConfig(PartConfig):
    argument: ClassVar[str] = "path"

    path: str = ""
    """Hub id, folder, or file."""
    config: str = ""
    """Configuration (subset) of the dataset."""
    image: str = ""
    """Column of the image or list of images; by default one of the usual names, if there is one."""
    question: str = ""
    """Column of the question."""
    answer: str = ""
    """Column of the answer; the first of several answers is taken."""
    talk: str = ""
    """Column of a whole conversation, instead of question and answer."""


class HfDataset(Source):
    """Rows are read when they are asked for."""

    beni_api = 1
    Config = HfDatasetConfig

    def split(self, name: str) -> Sequence[Sample] | None:
        path = Path(self.config.path)
        loader = LOADERS.get(path.suffix)
        try:
            if loader and path.exists():
                if name != "train":
                    return None
                table = datasets.load_dataset(loader, data_files=str(path), split="train")
            else:
                table = datasets.load_dataset(self.config.path, self.config.config or None, split=name)
        except ValueError as error:
            if "split" in str(error).lower():
                return None
            raise DataError(f"hf:{self.config.path} cannot be read: {str(error).splitlines()[0]}") from error
        except (OSError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"hf:{self.config.path} cannot be read: {str(error).splitlines()[0]}") from error
        return _Rows(table, self.config)


class _Rows(Sequence[Sample]):
    def __init__(self, table: datasets.Dataset, config: HfDatasetConfig) -> None:
        self.config = config
        self.columns = {kind: _column(table, kind, getattr(config, kind)) for kind in USUAL}
        if not self.columns["talk"] and not (self.columns["question"] and self.columns["answer"]):
            raise DataError(
                f"hf:{config.path} has columns {', '.join(table.column_names)}: say which hold the question and the answer "
                f"(?question=…&answer=…), or the conversation (?talk=…)"
            )
        if self.columns["image"]:
            table = _undecoded(table, self.columns["image"])
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        row = self.table[index]
        where = f"hf:{self.config.path}, row {index}"
        images = row[self.columns["image"]] if self.columns["image"] else None
        refs = tuple(_ref(image, where) for image in (images if isinstance(images, list) else [images]) if image)
        turns = _conversation(row[self.columns["talk"]], where) if self.columns["talk"] else self._question(row)
        marks = sum(isinstance(part, int) for turn in turns for part in turn.content)
        if not marks and refs:  # a question that does not say where its images stand: in front of it
            first = next(i for i, turn in enumerate(turns) if turn.role == "user")
            turns[first] = Turn("user", (*range(len(refs)), "\n", *turns[first].content))
        elif marks != len(refs):
            raise DataError(f"{where} has {marks} <image> marks but {len(refs)} images")
        return Sample(str(row.get("id", index)), tuple(turns), refs)

    def _question(self, row: Mapping[str, Any]) -> list[Turn]:
        answer = row[self.columns["answer"]]
        answer = answer[0] if isinstance(answer, list) and answer else answer
        return [
            Turn("user", split_marks(str(row[self.columns["question"]]))),
            Turn("assistant", (str(answer),)),
        ]


def _column(table: datasets.Dataset, kind: str, wanted: str) -> str:
    if wanted and wanted not in table.column_names:
        raise DataError(f"the dataset has no column '{wanted}' for the {kind}; it has {', '.join(table.column_names)}")
    return wanted or next((name for name in USUAL[kind] if name in table.column_names), "")


def _undecoded(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """Images as bytes or paths: they are decoded by the workers, like everybody's."""
    feature = table.features[column]
    plain = datasets.Image(decode=False)
    if isinstance(feature, datasets.Image):
        return table.cast_column(column, plain)
    if isinstance(feature, (datasets.Sequence, datasets.List)) and isinstance(feature.feature, datasets.Image):
        return table.cast_column(column, datasets.List(plain))
    return table


def _ref(image: Any, where: str) -> ImageRef:
    if isinstance(image, Mapping):
        return ImageRef(data=image["bytes"]) if image.get("bytes") else ImageRef(path=image.get("path") or "")
    if isinstance(image, bytes):
        return ImageRef(data=image)
    if isinstance(image, str):
        return image_ref(image)
    raise DataError(f"{where}: an image is a {type(image).__name__}, expected bytes, a path or a URL")


def _conversation(talk: Any, where: str) -> list[Turn]:
    turns: list[Turn] = []
    placed = 0
    if not isinstance(talk, list):
        raise DataError(f"{where}: the conversation is a {type(talk).__name__}, not a list of turns")
    for said in talk:
        pairs = [("user", said["user"]), ("assistant", said["assistant"])] if "user" in said else None
        for role, content in pairs or [(said.get("role", said.get("from")), said.get("content", said.get("value")))]:
            if role not in ROLES or content is None:
                raise DataError(f"{where}: a turn is neither {{role, content}} nor {{from, value}} nor {{user, assistant}}")
            text = content if isinstance(content, str) else _flatten(content)
            parts = split_marks(text, placed)
            placed += sum(isinstance(part, int) for part in parts)
            turns.append(Turn(ROLES[role], parts))
    return turns


def _flatten(content: Any) -> str:
    """A content list of {type: text | image} entries as text with marks."""
    return "".join("<image>" if part.get("type") == "image" else str(part.get("text") or "") for part in content)
