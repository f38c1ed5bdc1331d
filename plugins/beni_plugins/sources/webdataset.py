"""Tars in the WebDataset convention: files with the same name up to the first dot are one sample.

A sample is any number of images (`0001.jpg`; or `0001.0.jpg`, `0001.1.jpg` …, in the order of their names, numbers by
value) and one text: a `.json` with a conversation, or with a question and an answer; else a caption from a `.txt` or
`.caption`, or from the `.json`. Images are shown by `<image>` marks, or in front of the first question; a `.json` need
not name them, and what it says of their paths is not used. A caption answers the images alone, or behind them the
option `prompt`.

Tars lie on a disk of this machine and are read at any place: one pass over the headers says where every file is, texts
are read when a sample is asked for, images where they are cut. A folder may have splits: tars whose names begin with
train, val (or validation) and test, or folders of tars with these names. Everything else is `train`.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from os.path import commonpath
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from beni.config import PartConfig
from beni.data.braces import expand
from beni.data.conversation import check_answers, exchange, show, turns_of, usual, words
from beni.data.spans import read_span
from beni.data.tars import Index, index_of
from beni.errors import DataError
from beni.interfaces import Source
from beni.sample import ImageRef, Sample, Turn

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("json", "txt", "caption")
"""Extensions of images, the last one counts, and of texts, where the whole of it does."""
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
"""How tars and folders of a split are called."""


@dataclass(frozen=True, slots=True)
class WebDatasetConfig(PartConfig):
    argument: ClassVar[str] = "path"

    path: str = ""
    """Tars, by ranges and lists (`shards/{0000..0099}.tar`, `{a,b}.tar`) or a pattern (`shards/*.tar`); or a folder."""
    prompt: str = ""
    """What captions answer, such as `Describe the image.`; by default nothing but the images."""


class WebDataset(Source):
    """Splits: train, and in a folder val and test where tars or folders are named after them."""

    beni_api = 1
    Config = WebDatasetConfig

    def split(self, name: str) -> "Samples | None":
        if not self.config.path:
            raise DataError("webdataset needs tars: write webdataset:shards/{0000..0099}.tar, a pattern, or a folder")
        names = list(expand(self.config.path))
        if len(names) == 1 and Path(names[0]).is_dir():
            paths = _in(Path(names[0])).get(name)
        else:
            paths = _named(self.config.path, names) if name == "train" else None
        return Samples(paths, self.config.prompt) if paths else None


class Samples(Sequence[Sample]):
    """The samples of some tars, each made, and checked, when it is asked for; no file is held open."""

    def __init__(self, paths: Sequence[Path], prompt: str) -> None:
        self.prompt = prompt
        common = commonpath([path.absolute().parent for path in paths])
        self.tars = [_Tar(path, path.absolute().relative_to(common).as_posix()) for path in paths]
        self.starts = [0, *accumulate(len(tar) for tar in self.tars)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        index = range(len(self))[index]
        number = bisect_right(self.starts, index) - 1
        return self.tars[number].sample(index - self.starts[number], self.prompt)


class _Tar:
    """The samples of one tar.

    Args:
        path: where it is.
        known_as: where it is among the others: the beginning of its samples' ids.
    """

    def __init__(self, path: Path, known_as: str) -> None:
        self.index = index_of(path)
        self.name = known_as.removesuffix(".tar")
        samples = _samples(self.index)
        self.members = np.array([member for sample in samples for member in sample], dtype=np.int64)
        self.ends = np.cumsum([0, *map(len, samples)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def sample(self, number: int, prompt: str) -> Sample:
        """Read the text of a sample, and say where its images are.

        Raises:
            DataError: the tar cannot be read any more.
        """
        members = self.members[self.ends[number] : self.ends[number + 1]]
        spans = {_ending(span.name): span for span in map(self.index.__getitem__, members.tolist())}
        key = _key(next(iter(spans.values())).name)
        texts = {ending: read_span(self.index.path, spans[ending]) for ending in TEXTS if ending in spans}
        shown = sorted((ending for ending in spans if ending.rpartition(".")[2] in IMAGES), key=_by_value)
        try:
            turns = _turns(texts, shown, prompt, f"{self.index.path}: {key}")
        except DataError as error:
            return Sample.unusable(f"{self.name}/{key}", str(error))
        images = tuple(ImageRef(path=str(self.index.path), span=spans[ending]) for ending in shown)
        return Sample(f"{self.name}/{key}", turns, images)


# ------------------------------------------------------------------------------------------------------------- samples


def _samples(index: Index) -> list[list[int]]:
    """The members of each sample, in the order in which the first of them lies in the tar.

    Raises:
        DataError: two members with one name, or no sample.
    """
    samples: dict[str, dict[str, int]] = {}
    for number in range(len(index)):
        name = index[number].name
        ending = _ending(name)
        if not ending or name.rpartition("/")[2].startswith("."):  # notes to people, and what file managers leave
            continue
        sample = samples.setdefault(_key(name), {})
        if ending in sample:
            raise DataError(
                f"{index.path} holds {name} twice (capitals are not told apart): give samples names of their own"
            )
        sample[ending] = number
    if not samples:
        raise DataError(f"{index.path} holds no sample: names look like 0001.jpg and 0001.json, not {index[0].name}")
    return [list(sample.values()) for sample in samples.values()]


def _key(name: str) -> str:
    """What the members of a sample have in common."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    return folder + slash + base.partition(".")[0]


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _by_value(ending: str) -> list[tuple[int, str]]:
    """Puts `2.jpg` before `10.jpg`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", ending)]


def _turns(texts: Mapping[str, bytes], shown: Sequence[str], prompt: str, where: str) -> tuple[Turn, ...]:
    """The conversation about so many images.

    Raises:
        DataError: there is none, or it does not fit the images.
    """
    told = _json(texts["json"], f"{where}.json") if "json" in texts else {}
    fields = {name: value for name, value in told.items() if value is not None} if isinstance(told, Mapping) else {}
    talk, question, answer = (usual(kind, fields) for kind in ("talk", "question", "answer"))
    caption = next((ending for ending in texts if ending != "json"), "")
    if talk or isinstance(told, list):
        where = f"{where}.json"
        turns = turns_of(fields[talk] if talk else told, where)
    elif question and answer:
        where = f"{where}.json"
        turns = exchange(*(words(fields[name], f"text under '{name}'", where) for name in (question, answer)))
    elif caption or answer:
        where = f"{where}.{caption or 'json'}"
        if not shown:
            raise DataError(f"{where}: is a caption of no image; images are {', '.join(IMAGES)}")
        text = _text(texts[caption], where) if caption else words(fields[answer], f"text under '{answer}'", where)
        turns = exchange(prompt, text.strip())
    else:
        raise DataError(
            f"{where}.* has no text: neither a .txt or .caption, nor a .json with a conversation, a question and its "
            f"answer, or a caption"
        )
    check_answers(turns, where)
    if not any(isinstance(part, str) and part.strip() for part in turns[-1].content):
        raise DataError(f"{where}: the answer is empty")
    return show(turns, len(shown), where)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from error


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(_text(data, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}") from error


# ---------------------------------------------------------------------------------------------------------------- tars


def _in(folder: Path) -> dict[str, list[Path]]:
    """The tars of each split.

    Raises:
        DataError: none, or tars of which it cannot be said to which split they belong.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.tar")):
        named = re.match(f"({'|'.join(SPLITS)})(?![a-z])", path.name)
        found.setdefault(SPLITS[named[1]] if named else "", []).append(path)
    for name, split in SPLITS.items():
        inside = sorted((folder / name).glob("*.tar"))
        if inside:
            found.setdefault(split, []).extend(inside)
    if not found:
        raise DataError(f"there is no .tar in {folder}, nor in {folder / 'train'}")
    if "" in found and len(found) > 1:
        raise DataError(
            f"{folder} has tars of splits, and {found[''][0].name}, whose name begins with none of "
            f"{', '.join(SPLITS)}: name the tars that are meant, such as webdataset:{folder}/*.tar"
        )
    return {split or "train": paths for split, paths in found.items()}


def _named(pattern: str, names: Sequence[str]) -> list[Path]:
    """The tars that a pattern stands for, in its order, where names still have wild cards.

    Raises:
        DataError: one of them is missing, or named twice, or no file of this machine.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError(
            f"webdataset:{pattern} is not on a disk of this machine: download the tars, and name them there"
        )
    found: list[Path] = []
    missing = []
    for name in names:
        path = Path(name)
        root = Path(path.anchor)
        here = [path] if path.is_file() else sorted(root.glob(str(path.relative_to(root))))
        found += here
        missing += [] if here else [name]
    if missing:
        more = f", nor {len(missing) - 1} more of the {len(names)} that {pattern} names" if missing[1:] else ""
        raise DataError(f"there is no file {missing[0]}{more}")
    if len(set(found)) < len(found):
        twice = next(path for number, path in enumerate(found) if path in found[:number])
        raise DataError(f"webdataset:{pattern} names {twice} twice; --weights say what is seen more often")
    return found
