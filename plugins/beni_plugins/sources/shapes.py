"""Drawn scenes of 1–6 coloured shapes with questions of five types, balanced so that they cannot be guessed.

Some colour×shape pairs occur only in the split `unseen`: neither an image nor a question of the other splits has them,
so they measure whether a model combines what it knows. Everything is made from a seed; nothing is downloaded.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.interfaces import Source
from beni.sample import ImageRef, Sample, vqa_sample
from beni.types import Size

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 60, 190),
    "orange": (245, 135, 30),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond")
CORNERS = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 1), (-1, 1)),
    "diamond": ((0, -1), (1, 0), (0, 1), (-1, 0)),
    "cross": (
        *((-1 / 3, -1), (1 / 3, -1), (1 / 3, -1 / 3), (1, -1 / 3), (1, 1 / 3), (1 / 3, 1 / 3)),
        *((1 / 3, 1), (-1 / 3, 1), (-1 / 3, 1 / 3), (-1, 1 / 3), (-1, -1 / 3), (-1 / 3, -1 / 3)),
    ),
}
"""Of a shape of radius 1; y grows downwards."""
UNSEEN = frozenset(zip(COLOURS, (*SHAPES, *SHAPES), strict=False))
"""One pair per colour that is held out: every colour and every shape is seen, these combinations are not."""
_SEEN = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in UNSEEN]
_HELD_OUT = sorted(UNSEEN)
BACKGROUNDS = (150, 200)
"""Grey levels of the background."""
OUTLINE = (50, 50, 50)
"""Every object's edge is as dark, so that a shape can be seen without regard to its colour."""
OUTLINE_WIDTH = 1.25
"""Pixels."""
CLEARLY = 0.25
"""Share of its side by which an object must reach into a quarter of the image to be seen there."""
SPLITS = {"train": 0, "val": 1, "test": 2, "unseen": 3}


class Item(NamedTuple):
    """One object: what it is, its centre and size in pixels, and the quarters of the image that it reaches into."""

    colour: str
    shape: str
    x: float
    y: float
    side: float
    quarters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShapesConfig(PartConfig):
    images: int = 5000
    """Images of the training split; val has a tenth of it, at most 500, test and unseen a fifth, at most 1,000."""
    questions: int = 2
    """Questions of each type that an image is asked, at most."""
    size: int = 64
    """Side of an image in pixels."""
    smallest: int = 12
    """Least side of an object in pixels."""
    largest: int = 20
    """Largest side of an object in pixels."""
    most: int = 6
    """Most objects in an image."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        if not 10 <= self.smallest <= self.largest <= self.size / 3 or not 1 <= self.most <= 6:
            raise ConfigError(
                f"source 'shapes': up to {self.most} objects of {self.smallest}–{self.largest} pixels do not fit "
                f"images of {self.size} pixels: 10 ≤ smallest ≤ largest ≤ size/3 and 1 ≤ most ≤ 6"
            )
        if self.images < 1 or self.questions < 1 or self.seed < 0:
            raise ConfigError(
                f"source 'shapes': {self.images} images, {self.questions} questions and seed {self.seed}; "
                f"at least 1, 1 and 0 are possible"
            )


class Shapes(Source):
    """Questions of every type that an image allows."""

    beni_api = 1
    Config = ShapesConfig
    eval_splits: ClassVar[tuple[str, ...]] = ("test", "unseen")

    def split(self, name: str) -> Sequence[Sample] | None:
        return _split(self.config, name) if name in SPLITS else None


@lru_cache(maxsize=len(SPLITS))
def _split(config: ShapesConfig, name: str) -> tuple[Sample, ...]:
    """A run asks for a split more than once, and drawing takes longer than anything else that it does with the data."""
    share, most = {"train": (1, inf), "val": (0.1, 500), "test": (0.2, 1000), "unseen": (0.2, 1000)}[name]
    samples = []
    for number in range(max(1, int(min(most, share * config.images)))):
        items, rng = scene(config, name, number)
        image = ImageRef(data=_draw(rng, items, config.size), size=Size(config.size, config.size))
        about = [i for i in items if (i.colour, i.shape) in UNSEEN] if name == "unseen" else items
        for kind, ask in QUESTIONS.items():
            asked = dict.fromkeys(ask(rng, items, about) for _ in range(config.questions))
            samples += [
                vqa_sample(f"{name}-{number}-{kind}-{n}", image, *pair, {"type": kind})
                for n, pair in enumerate(asked)
                if pair is not None
            ]
    return tuple(samples)


# --------------------------------------------------------------------------------------------------------------- scenes


def scene(config: ShapesConfig, split: str, number: int) -> tuple[list[Item], np.random.Generator]:
    """The objects of an image, which do not overlap, and the generator that goes on to draw and to ask.

    In `unseen` at least one object is of a held-out pair, elsewhere none.
    """
    rng = np.random.default_rng((config.seed, SPLITS[split], number))
    wanted = int(rng.integers(1, config.most + 1))
    items: list[Item] = []
    for _ in range(50 * wanted):
        side = float(rng.uniform(config.smallest, config.largest))
        x, y = (float(v) for v in rng.uniform(side / 2 + 1, config.size - side / 2 - 1, 2))
        if any(max(abs(x - i.x), abs(y - i.y)) < (side + i.side) / 2 + 1 for i in items):
            continue
        pairs = _HELD_OUT if split == "unseen" and (not items or rng.random() < 0.3) else _SEEN
        if items and rng.random() < 0.35:  # repeat a colour or a shape, so that counting has something to count
            like = items[int(rng.integers(len(items)))]
            pairs = [p for p in pairs if like.colour == p[0] or like.shape == p[1]] or pairs
        items.append(Item(*pairs[int(rng.integers(len(pairs)))], x, y, side, _quarters(x, y, side, config.size / 2)))
        if len(items) == wanted:
            break
    return items, rng


def _quarters(x: float, y: float, side: float, middle: float) -> tuple[str, ...]:
    reach = side * (0.5 - CLEARLY)
    rows = [name for name, sign in (("top", -1), ("bottom", 1)) if sign * (y - middle) > -reach]
    columns = [name for name, sign in (("left", -1), ("right", 1)) if sign * (x - middle) > -reach]
    return tuple(f"{row} {column}" for row in rows for column in columns)


def _draw(rng: np.random.Generator, items: Sequence[Item], size: int) -> bytes:
    """A PNG, anti-aliased by drawing four times as large."""
    scale = 4
    grey = int(rng.integers(*BACKGROUNDS))
    canvas = Image.new("RGB", (size * scale, size * scale), (grey, grey, grey))
    pen = ImageDraw.Draw(canvas)
    for item in items:
        colour = tuple(int(np.clip(v + rng.integers(-12, 13), 0, 255)) for v in COLOURS[item.colour])
        x, y, r = item.x * scale, item.y * scale, item.side * scale / 2
        style: dict[str, Any] = {"fill": colour, "outline": OUTLINE, "width": round(OUTLINE_WIDTH * scale)}
        if item.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), **style)
        else:
            pen.polygon([(x + r * dx, y + r * dy) for dx, dy in CORNERS[item.shape]], **style)
    file = io.BytesIO()
    canvas.resize((size, size), Image.Resampling.BOX).save(file, "png")
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------------ questions

Asked = tuple[str, str] | None


def _in_a_quarter(rng: np.random.Generator, items: Sequence[Item], about: Sequence[Item]) -> tuple[str, Item] | None:
    """A quarter of the image with exactly one object, and that object.

    What is asked of it cannot be read off the question. Asked for the shape of "the red object", a language model
    would learn from the words alone which shapes are never red, and so that no held-out pair can be the answer.
    """
    by_quarter: dict[str, list[Item]] = {}
    for item in items:
        for quarter in item.quarters:
            by_quarter.setdefault(quarter, []).append(item)
    alone = [(q, i[0]) for q, i in by_quarter.items() if len(i) == 1 and len(i[0].quarters) == 1 and i[0] in about]
    return alone[int(rng.integers(len(alone)))] if alone else None


def _colour(rng: np.random.Generator, items: Sequence[Item], about: Sequence[Item]) -> Asked:
    found = _in_a_quarter(rng, items, about)
    return found and (f"what color is the object in the {found[0]}?", found[1].colour)


def _shape(rng: np.random.Generator, items: Sequence[Item], about: Sequence[Item]) -> Asked:
    found = _in_a_quarter(rng, items, about)
    return found and (f"what shape is the object in the {found[0]}?", found[1].shape)


def _counting(rng: np.random.Generator, items: Sequence[Item], about: Sequence[Item]) -> Asked:
    """Each number that occurs in the scene is asked for alike, so no number is a good guess."""
    by_number: dict[int, list[str]] = {}
    if len(about) == len(items):
        by_number[len(items)] = ["objects"]
    for colour in sorted({i.colour for i in about}):
        by_number.setdefault(sum(i.colour == colour for i in items), []).append(f"{colour} objects")
    for shape in sorted({i.shape for i in about}):
        number = sum(i.shape == shape for i in items)
        by_number.setdefault(number, []).append(f"{shape}s" if shape != "cross" else "crosses")
    number = sorted(by_number)[int(rng.integers(len(by_number)))]
    what = by_number[number][int(rng.integers(len(by_number[number])))]
    return f"how many {what} are there?", str(number)


def _existence(rng: np.random.Generator, items: Sequence[Item], about: Sequence[Item]) -> Asked:
    """Yes and no alike; a no combines a colour and a shape that are both there, where possible."""
    present = {(i.colour, i.shape) for i in items}
    known = _HELD_OUT if any((i.colour, i.shape) in UNSEEN for i in about) else _SEEN
    if rng.random() < 0.5:
        item = about[int(rng.integers(len(about)))]
        return f"is there {_an(item.colour)} {item.shape}?", "yes"
    absent = [pair for pair in known if pair not in present]
    near = [(c, s) for c, s in absent if any(i.colour == c for i in items) and any(i.shape == s for i in items)]
    half = [(c, s) for c, s in absent if any(i.colour == c or i.shape == s for i in items)]
    choices = near or half or absent
    colour, shape = choices[int(rng.integers(len(choices)))]
    return f"is there {_an(colour)} {shape}?", "no"


def _an(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _names(item: Item, items: Sequence[Item]) -> list[str]:
    """Words that mean this object and no other: its colour, its shape, or both; both, for a held-out pair."""
    named = {
        f"{item.colour} object": [i.colour == item.colour for i in items],
        item.shape: [i.shape == item.shape for i in items],
        f"{item.colour} {item.shape}": [i[:2] == item[:2] for i in items],
    }
    alone = [name for name, meant in named.items() if sum(meant) == 1]
    return alone[-1:] if item[:2] in UNSEEN else alone


def _relation(rng: np.random.Generator, items: Sequence[Item], about: Sequence[Item]) -> Asked:
    """Asked along the axis on which the two are further apart: there, a gap of at least a pixel lies between them."""
    names = {id(i): _names(i, items) for i in items}
    pairs = [(a, b) for a in items for b in items if a is not b and (a in about or b in about)]
    pairs = [(a, b) for a, b in pairs if names[id(a)] and names[id(b)]]
    if not pairs:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    first, second = (names[id(i)][int(rng.integers(len(names[id(i)])))] for i in (a, b))
    along_x = abs(a.x - b.x) > abs(a.y - b.y)
    word = (("left of", "right of") if along_x else ("above", "below"))[int(rng.integers(2))]
    true = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[word]
    return f"is the {first} {word} the {second}?", "yes" if true else "no"


QUESTIONS: dict[str, Callable[[np.random.Generator, Sequence[Item], Sequence[Item]], Asked]] = {
    "colour": _colour,
    "shape": _shape,
    "counting": _counting,
    "existence": _existence,
    "relation": _relation,
}
