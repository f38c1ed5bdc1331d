"""What a source yields: a conversation with images in it, and nothing about models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from beni.errors import DataError
from beni.types import Size

Role = Literal["system", "user", "assistant", "text"]
"""`text` is raw text outside any conversation: no template, every token is a target."""

Metric = Literal["exact", "vqa", "choice", "caption"]
"""How an answer is judged (`beni.eval.metrics`)."""
METRICS: tuple[Metric, ...] = get_args(Metric)

IMAGE_MARK = "<image>"
"""Stands for an image in the text of LLaVA files and prompts."""

NEWLINE_MARK = "<image_newline>"
"""The token that ends a row, or a block, of an image in the text."""

VISUAL_MARK = "<|visual|>"
"""The token at a position that one visual token takes."""


class Span(NamedTuple):
    """Where a file lies inside another one, as in a tar: its name there, first byte and length."""

    name: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image is: exactly one of a path, a URL, or the bytes of an encoded file.

    `size` is the size after EXIF rotation if the source knows it, which saves reading the header. With a `span` the
    image is a stretch of the file at `path`.
    """

    path: str = ""
    url: str = ""
    data: bytes = field(default=b"", repr=False)
    size: Size | None = None
    span: Span | None = None

    def __post_init__(self) -> None:
        if sum(map(bool, (self.path, self.url, self.data))) != 1:
            raise DataError(
                "an image is exactly one of a path, a URL, or the bytes of an image file; this one is empty"
            )
        if self.span and not self.path:
            raise DataError(f"image {self.span.name} is a stretch of a file, and no path says of which")

    @property
    def key(self) -> str | bytes:
        """Equal for references to the same image."""
        if self.span:
            return f"{self.path}:{self.span.start}+{self.span.length}"
        return self.path or self.url or self.data

    @property
    def name(self) -> str:
        """For messages."""
        if self.span:
            return f"{self.path}: {self.span.name}"
        return self.path or self.url or f"({len(self.data):,} bytes)"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says: text, and the indices of images, in reading order."""

    role: Role
    content: tuple[str | int, ...]

    @classmethod
    def user(cls, text: str) -> "Turn":
        """A question whose `<image>` marks place images 0, 1, …"""
        return cls("user", split_marks(text))


@dataclass(frozen=True, slots=True)
class Sample:
    """One independent conversation. Its last turn is the answer that is trained and judged."""

    id: str
    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Free labels (`{"type": "counting"}`): accuracy is also reported for each value."""
    answers: tuple[str, ...] = ()
    """What each of several people answered; empty where only the last turn is known."""
    choices: tuple[str, ...] = ()
    """Answers to choose from, one of them the last turn; empty where any answer can be given."""
    template: str = ""
    """Its chat template, by name or file; empty: the run's. Set from the data spec, as are the next two."""
    metric: Metric = "exact"
    """How its answer is judged."""
    loss_weight: float = 1.0
    """How much each of its targets counts in the loss of a training step."""
    problem: str = ""
    """Why it cannot be used, where its source cannot make it: it is left out and listed, or ends the run."""

    def __post_init__(self) -> None:
        if not self.turns:
            raise DataError(f"sample '{self.id}' has no turns")
        placed = [part for turn in self.turns for part in turn.content if isinstance(part, int)]
        if placed != list(range(len(self.images))):
            raise DataError(
                f"sample '{self.id}' places {len(placed)} images in its text but has {len(self.images)}: "
                f"every image needs exactly one place, in order"
            )

    @classmethod
    def unusable(cls, id: str, problem: str) -> "Sample":
        """In the place of a sample that its source cannot make."""
        return cls(id, (Turn("assistant", ("",)),), problem=problem)

    @property
    def answer(self) -> str:
        """The text of the last turn."""
        return "".join(part for part in self.turns[-1].content if isinstance(part, str)).strip()

    @property
    def question(self) -> str:
        """The text of the last turn of the user."""
        asked = [turn for turn in self.turns if turn.role == "user"]
        return " ".join(part for part in asked[-1].content if isinstance(part, str)).strip() if asked else ""


ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Roles as data files name them."""


def image_ref(where: str, root: Path | None = None) -> ImageRef:
    """A reference to a URL, or to a path relative to `root`."""
    if where.startswith(("http://", "https://")):
        return ImageRef(url=where)
    return ImageRef(path=str(root / where if root else where))


def split_marks(text: str, first_image: int = 0) -> tuple[str | int, ...]:
    """Cut a text at its `<image>` marks: `"a <image> b"` becomes `("a ", 0, " b")`, counting from `first_image`."""
    content: list[str | int] = []
    for index, chunk in enumerate(text.split(IMAGE_MARK)):
        if index:
            content.append(first_image + index - 1)
        if chunk:
            content.append(chunk)
    return tuple(content)


def vqa_sample(id: str, image: ImageRef, question: str, answer: str, tags: Mapping[str, str] | None = None) -> Sample:
    """The commonest sample: one image, one question, one answer."""
    turns = (Turn("user", (0, "\n" + question)), Turn("assistant", (answer,)))
    return Sample(id, turns, (image,), tags or {})
