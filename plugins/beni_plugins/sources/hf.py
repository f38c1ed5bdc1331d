"""Any dataset that `datasets` can read: a hub id, a local folder, or a parquet, JSON, CSV or arrow file.

Rows hold either a conversation (a column of {role | from, content | value} turns) or a question and an answer; images
stand in a column of one image or of a list. Which columns these are is told by options or by their usual names.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import datasets

from beni.config import PartConfig
from beni.data.conversation import USUAL, Answered, answered, exchange, show, turns_of, usual, words
from beni.errors import DataError, first_line
from beni.interfaces import Reading, Source, Stream
from beni.sample import ImageRef, Sample, image_ref

FAULTS = (ValueError, OSError, datasets.exceptions.DatasetsError)
"""What `datasets` raises for files that it cannot read."""
LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}

ENDS = {".parquet": b"PAR1", ".arrow": b"ARROW1"}
"""What files of these kinds begin and end with; an arrow stream does neither."""


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
    prompt: str = ""
    """Asked of every row, instead of a question in a column."""
    answer: str = ""
    """Column of the answer; of several, the first is trained on and all of them judge (metric=vqa, metric=caption)."""
    choices: str = ""
    """Column of lists of answers to choose from (metric=choice); the answer is one of them, its number from 0, or its
    letter."""
    talk: str = ""
    """Column of a whole conversation, instead of question and answer."""
    streaming: bool = False
    """Read rows in order while training goes on, instead of fetching all of them first."""


class HfDataset(Source):
    """Rows are read when they are asked for. `val` is also found under the name `validation`."""

    beni_api = 1
    Config = HfDatasetConfig

    def split(self, name: str) -> "Rows | RowStream | None":
        if not self.config.path:
            raise DataError("hf needs a dataset: write hf:ID, hf:FOLDER or hf:FILE")
        path = Path(self.config.path)
        for known_as in {"val": ("val", "validation")}.get(name, (name,)):
            try:
                table = self._load(path, known_as)
            except FAULTS as error:
                if str(error).startswith("Unknown split"):
                    continue
                raise DataError(f"hf:{self.config.path} cannot be read: {_why(path, error)}") from error
            if table is not None:
                return (RowStream if self.config.streaming else Rows)(table, self.config)
        return None

    def _load(self, path: Path, split: str) -> Any:
        if path.suffix in LOADERS and path.is_file():
            if split != "train":
                return None
            if not path.stat().st_size:
                raise DataError(f"hf:{path} is an empty file")
            source: dict[str, Any] = {"path": LOADERS[path.suffix], "data_files": str(path)}
        else:
            source = {"path": self.config.path, "name": self.config.config or None}
        if self.config.streaming:
            return datasets.load_dataset(**source, streaming=True).get(split)
        return datasets.load_dataset(**source, split=split)


class RowReader:
    """Makes samples of the rows of a table.

    Args:
        table: of `datasets`, as a whole or as a stream.
        config: says which columns hold what.

    Raises:
        DataError: there are no such columns.
    """

    def __init__(self, table: Any, config: HfDatasetConfig) -> None:
        self.config = config
        names = table.column_names or list(next(iter(table.take(1)), {}))  # of some streams nobody knows them before
        self.columns = {kind: _column(names, kind, getattr(config, kind)) for kind in (*USUAL, "choices")}
        if not self.columns["talk"] and not ((config.prompt or self.columns["question"]) and self.columns["answer"]):
            raise DataError(
                f"hf:{config.path} has columns {', '.join(names)}: say which hold the question (?question=…, or "
                f"?prompt=… for the same one everywhere) and the answer (&answer=…), or the conversation (?talk=…)"
            )
        self.table = _undecoded(table, self.columns["image"]) if self.columns["image"] else table
        path = Path(config.path)
        self.root = path.parent if path.is_file() else path if path.is_dir() else None

    def sample(self, row: Mapping[str, Any], index: int) -> Sample:
        """A row, checked.

        Raises:
            DataError: no sample can be made of it.
        """
        where = f"hf:{self.config.path}, row {index}"
        shown = row[self.columns["image"]] if self.columns["image"] else None
        shown = [image for image in (shown if isinstance(shown, list) else [shown]) if image]
        refs = tuple(_ref(image, self.root, where) for image in shown)
        if self.columns["talk"]:
            turns, told = turns_of(row[self.columns["talk"]], where), Answered("")
        else:
            told = self._answered(row, where)
            turns = exchange(self.config.prompt or self._question(row, where), told.answer)
        name = row.get("id")
        return Sample(
            str(index if name is None else name),
            show(turns, len(refs), where),
            refs,
            answers=told.answers,
            choices=told.choices,
        )

    def _question(self, row: Mapping[str, Any], where: str) -> str:
        column = self.columns["question"]
        return words(row[column], f"question (column '{column}')", where)

    def _answered(self, row: Mapping[str, Any], where: str) -> Answered:
        """The answer, and what else is known of it; of a class label its name."""
        column, choices = self.columns["answer"], self.columns["choices"]
        value, feature = row[column], (self.table.features or {}).get(column)  # of some streams they are not known
        if isinstance(feature, datasets.ClassLabel) and isinstance(value, int):
            value = feature.int2str(value)
        return answered(value, row[choices] if choices else None, f"answer (column '{column}')", where)


class Rows(RowReader, Sequence[Sample]):
    """The rows of a table, each made a sample, and checked, when it is asked for."""

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self.sample(self.table[index], index)


class RowStream(RowReader, Stream):
    """The rows of a table in order.

    A position is {row: how many there are before it, state: what `datasets` needs to go on there}.
    """

    def __init__(self, table: Any, config: HfDatasetConfig) -> None:
        super().__init__(table, config)
        self.start = self.table.state_dict()
        self.open: tuple[int, Any, Iterator[Any]] | None = None
        """The process that reads, the position that it has reached, and the rows behind it."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"open": None}

    def read(self, position: Any, count: int) -> Reading:
        position = position or {"row": 0, "state": self.start}
        row = position["row"]
        if self.open is None or self.open[:2] != (os.getpid(), position):  # a fork shares open files with its parent
            self.table.load_state_dict(position["state"])
            self.open = (os.getpid(), position, iter(self.table))
        try:
            rows = list(islice(self.open[2], count))
        except Exception as error:  # of whatever library `datasets` reads with, over a network too
            where = f"hf:{self.config.path} cannot be read behind row {row:,}"
            raise DataError(f"{where}: {_why(Path(self.config.path), error)}") from error
        position = {"row": row + len(rows), "state": self.table.state_dict()}
        self.open = (os.getpid(), position, self.open[2])
        return Reading([self._sample(each, number) for number, each in enumerate(rows, start=row)], position)

    def _sample(self, row: Mapping[str, Any], index: int) -> Sample:
        try:
            return self.sample(row, index)
        except DataError as error:
            return Sample.unusable(str(index), str(error))


def _column(names: Sequence[str], kind: str, wanted: str) -> str:
    if wanted and wanted not in names:
        raise DataError(f"the dataset has no column '{wanted}' for the {kind}; it has {', '.join(names)}")
    return wanted or usual(kind, names) if kind in USUAL else wanted


def _undecoded(table: Any, column: str) -> Any:
    """Images as bytes or paths: they are decoded by the workers, like everybody's."""
    feature = (table.features or {}).get(column)
    plain = datasets.Image(decode=False)
    if isinstance(feature, datasets.Image):
        return table.cast_column(column, plain)
    if isinstance(feature, (datasets.Sequence, datasets.List)) and isinstance(feature.feature, datasets.Image):
        return table.cast_column(column, datasets.List(plain))
    return table


def _ref(image: Any, root: Path | None, where: str) -> ImageRef:
    if isinstance(image, Mapping) and (image.get("bytes") or image.get("path")):
        image = image.get("bytes") or image["path"]
    if isinstance(image, bytes):
        return ImageRef(data=image)
    if isinstance(image, str):
        return image_ref(image, root)
    raise DataError(f"{where}: an image is a {type(image).__name__}, expected bytes, a path or a URL")


def _why(path: Path, error: BaseException) -> str:
    """What is wrong with a file, or with which one of a folder, if that can be seen: the libraries do not say."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []:
        mark = ENDS.get(file.suffix)
        if mark and file.is_file() and _cut_off(file, mark):
            return f"{file} was cut off: it ends at byte {file.stat().st_size:,}, in the middle of its data"
    said = first_line(error.__cause__ or error)
    return f"{said} (it has {path.stat().st_size:,} bytes: cut off?)" if path.is_file() else said


def _cut_off(file: Path, mark: bytes) -> bool:
    """Whether a file begins as it should, and does not end so."""
    with file.open("rb") as data:
        begins = data.read(len(mark)) == mark
        data.seek(max(0, file.stat().st_size - len(mark)))
        return begins and data.read() != mark
