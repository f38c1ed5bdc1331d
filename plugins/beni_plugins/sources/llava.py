"""LLaVA JSON: a list of `{id, image?: path or list of paths, conversations: [{from: human | gpt, value}]}`.

`image` may be a URL; paths are relative to the file's folder, or to the option `images`. A text turn places its images
by `<image>` marks. Items that are judged may have `answers`, what each of several people said, and `choices` (see
`beni.eval.metrics`). A folder with train.json, val.json and test.json offers these splits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from beni.config import PartConfig
from beni.data.conversation import check_answers, marks, turns_of
from beni.data.files import read_json, read_jsonl
from beni.errors import DataError, counted
from beni.interfaces import Source
from beni.sample import Sample, image_ref


@dataclass(frozen=True, slots=True)
class LlavaConfig(PartConfig):
    argument: ClassVar[str] = "path"

    path: str = ""
    """A .json or .jsonl file, or a folder with one per split."""
    images: str = ""
    """Folder that image paths are relative to; by default the file's own."""


class Llava(Source):
    """One image, lists of images, or none, per item."""

    beni_api = 1
    Config = LlavaConfig

    def split(self, name: str) -> Sequence[Sample] | None:
        if not self.config.path:
            raise DataError("llava needs a file or a folder: write llava:PATH")
        path = Path(self.config.path)
        if path.is_dir():
            found = [path / f"{name}{suffix}" for suffix in (".json", ".jsonl") if (path / f"{name}{suffix}").is_file()]
            if not found and name == "train":
                raise DataError(f"{path} is a folder without train.json: name a file, or a folder with splits")
            if not found:
                return None
            path = found[0]
        elif name != "train":
            return None
        root = Path(self.config.images) if self.config.images else path.parent
        return [_sample(item, number, where, root) for number, (where, item) in enumerate(_read(path))]


def _read(path: Path) -> list[tuple[str, Any]]:
    """Items, and where each stands."""
    if path.suffix == ".jsonl":
        return [(f"{path}, line {line}", item) for line, item in read_jsonl(path)]
    items = read_json(path)
    if not isinstance(items, list):
        raise DataError(f"{path} holds a {type(items).__name__}, LLaVA JSON is a list of items")
    return [(f"{path}, item {number}", item) for number, item in enumerate(items)]


def _sample(item: Any, number: int, where: str, root: Path) -> Sample:
    """One item, checked.

    Raises:
        DataError: says which file and item, and what is wrong with it.
    """

    name = f" (id '{item['id']}')" if isinstance(item, dict) and "id" in item else ""
    where = f"{where}{name}"
    if not isinstance(item, dict):
        raise DataError(f"{where}: is a {type(item).__name__}, not an object with 'conversations'")
    talk = item.get("conversations")
    if not isinstance(talk, list) or not talk:
        raise DataError(
            f"{where}: has no 'conversations', a list of {{from, value}}, but {', '.join(map(str, item))}; a question "
            f"and an answer in fields of their own are read by hf:FILE"
        )
    images = item.get("image")
    images = [images] if isinstance(images, str) else images or []
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise DataError(f"{where}: 'image' is neither a path nor a list of paths")
    turns = turns_of(talk, where)
    check_answers(turns, where)
    if marks(turns) != len(images):
        has = f"{counted(marks(turns), '<image> mark')} but {counted(len(images), 'image')}"
        hint = "" if "image" in item else f"; its fields are {', '.join(item)}: images are named by 'image'"
        raise DataError(f"{where}: has {has}{hint}")
    return Sample(
        str(item.get("id", number)),
        tuple(turns),
        tuple(image_ref(image, root) for image in images),
        answers=_texts(item, "answers", where),
        choices=_texts(item, "choices", where),
    )


def _texts(item: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    found = item.get(field) or []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise DataError(f"{where}: '{field}' is not a list of texts")
    return tuple(text.strip() for text in found)
