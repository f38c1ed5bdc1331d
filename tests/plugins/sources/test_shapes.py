"""The shapes: right answers, nothing to guess, and pairs that training never shows."""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from beni.errors import ConfigError
from beni.sample import Sample
from beni_plugins.sources.shapes import (
    COLOURS,
    OUTLINE,
    QUESTIONS,
    SHAPES,
    UNSEEN,
    Item,
    Shapes,
    ShapesConfig,
    _split,
    scene,
)

CONFIG = ShapesConfig()
SPLITS = ("train", "val", "test", "unseen")
PLURALS = {f"{shape}s" if shape != "cross" else "crosses": shape for shape in SHAPES}


@pytest.fixture(scope="module")
def splits() -> dict[str, Sequence[Sample]]:
    """All splits at their default sizes."""
    made = {name: Shapes(CONFIG).split(name) for name in SPLITS}
    return {name: samples for name, samples in made.items() if samples is not None}


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[list[Item]]]:
    sizes = {"train": 5000, "val": 500, "test": 1000, "unseen": 1000}
    return {name: [scene(CONFIG, name, number)[0] for number in range(size)] for name, size in sizes.items()}


def number_of(sample: Sample) -> int:
    return int(sample.id.split("-")[1])


def at(quarter: str, items: Sequence[Item]) -> Item:
    """The object in a quarter of the image; asserts that no other has a quarter of its side in it."""
    row, column = quarter.split()

    def inside(i: Item) -> float:
        """How far the object reaches into the quarter, in parts of its side."""
        down = i.y + i.side / 2 - 32 if row == "bottom" else 32 - (i.y - i.side / 2)
        right = i.x + i.side / 2 - 32 if column == "right" else 32 - (i.x - i.side / 2)
        return min(down, right) / i.side

    [there] = [i for i in items if inside(i) > 0.25]
    assert inside(there) >= 0.75
    return there


def called(name: str, items: Sequence[Item]) -> Item:
    """The one object of this name: a colour, a shape or both."""
    words = set(name.split()) - {"object"}
    [item] = [i for i in items if words <= {i.colour, i.shape}]
    return item


PLACED = re.compile(r"what (color|shape) is the object in the ((?:top|bottom) (?:left|right))\?")
RELATED = re.compile(r"is the ([\w ]+) (left of|right of|above|below) the ([\w ]+)\?")


def answer_from(items: Sequence[Item], question: str) -> str:
    """The answer, read off the scene by somebody who has not seen the generator; asserts that there is exactly one."""
    if match := PLACED.fullmatch(question):
        item = at(match[2], items)
        return item.colour if match[1] == "color" else item.shape
    if question == "how many objects are there?":
        return str(len(items))
    if match := re.fullmatch(r"how many (\w+) objects are there\?", question):
        return str(sum(i.colour == match[1] for i in items))
    if match := re.fullmatch(r"how many (\w+) are there\?", question):
        return str(sum(i.shape == PLURALS[match[1]] for i in items))
    if match := re.fullmatch(r"is there an? (\w+) (\w+)\?", question):
        return "yes" if any((i.colour, i.shape) == match.groups() for i in items) else "no"
    match = RELATED.fullmatch(question)
    assert match is not None, question
    a, b = called(match[1], items), called(match[3], items)
    low, high = {"left of": (a.x, b.x), "right of": (b.x, a.x), "above": (a.y, b.y), "below": (b.y, a.y)}[match[2]]
    across = (a.y, b.y) if match[2] in ("left of", "right of") else (a.x, b.x)
    assert abs(high - low) > (a.side + b.side) / 2 + 0.9  # a gap between them on the axis that is asked about
    assert abs(high - low) >= abs(across[0] - across[1])
    return "yes" if low < high else "no"


@pytest.mark.parametrize("split", SPLITS)
def test_answers_follow_from_the_scene(
    split: str, splits: dict[str, Sequence[Sample]], scenes: dict[str, list[list[Item]]]
) -> None:
    for sample in splits[split]:
        assert answer_from(scenes[split][number_of(sample)], sample.question) == sample.answer, sample.id


def test_every_type_is_asked_often(splits: dict[str, Sequence[Sample]]) -> None:
    assert len(QUESTIONS) >= 5
    for samples in splits.values():
        counts = Counter(sample.tags["type"] for sample in samples)
        assert set(counts) == set(QUESTIONS)
        assert min(counts.values()) > 0.1 * len(samples)
    assert len(splits["unseen"]) >= 2000


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_are_in_unseen_only(
    split: str, splits: dict[str, Sequence[Sample]], scenes: dict[str, list[list[Item]]]
) -> None:
    for items in scenes[split]:
        assert any((i.colour, i.shape) in UNSEEN for i in items) == (split == "unseen")
    for sample in splits[split]:
        asked = set(re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", sample.question))
        if split != "unseen":
            assert not asked & UNSEEN
    assert {colour for colour, _ in UNSEEN} == set(COLOURS) and {shape for _, shape in UNSEEN} == set(SHAPES)
    shown = {(i.colour, i.shape) for items in scenes["train"] for i in items}
    assert len(shown) == len(COLOURS) * len(SHAPES) - len(UNSEEN)


def meant(question: str, items: Sequence[Item]) -> list[tuple[str, str]]:
    """The pairs a question is about."""
    if match := PLACED.fullmatch(question):
        return [at(match[2], items)[:2]]
    if match := RELATED.fullmatch(question):
        return [called(match[1], items)[:2], called(match[3], items)[:2]]
    if match := re.fullmatch(r"is there an? (\w+) (\w+)\?", question):
        return [(match[1], match[2])]
    words = {PLURALS.get(word, word) for word in re.findall(r"\w+", question)}  # a number is asked for
    return [i[:2] for i in items if words & {i.colour, i.shape, "objects" if question.startswith("how many o") else ""}]


def test_every_question_of_unseen_is_about_a_held_out_pair(
    splits: dict[str, Sequence[Sample]], scenes: dict[str, list[list[Item]]]
) -> None:
    for sample in splits["unseen"]:
        if sample.tags["type"] in ("existence", "relation"):
            named = set(re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", sample.question))
            assert named & UNSEEN, sample.id
        assert set(meant(sample.question, scenes["unseen"][number_of(sample)])) & UNSEEN, sample.id


def test_what_is_asked_for_cannot_be_told_from_the_words(splits: dict[str, Sequence[Sample]]) -> None:
    """No question about a colour names a shape, or the other way round: words must not exclude the held-out pairs."""
    for sample in splits["train"]:
        if sample.tags["type"] in ("colour", "shape"):
            assert not set(re.findall(r"\w+", sample.question)) & {*COLOURS, *SHAPES}, sample.question


def test_what_is_absent_is_a_mix_of_what_is_there(
    splits: dict[str, Sequence[Sample]], scenes: dict[str, list[list[Item]]]
) -> None:
    """A no cannot be told from a colour or a shape alone, wherever the scene allows a question of that kind."""
    for sample in splits["val"]:
        if sample.tags["type"] != "existence" or sample.answer == "yes":
            continue
        items = scenes["val"][number_of(sample)]
        there = {(i.colour, i.shape) for i in items}
        mixes = {(a.colour, b.shape) for a in items for b in items} - there - UNSEEN
        [asked] = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", sample.question)
        assert not mixes or asked in mixes, sample.id


def blind_rates(train: Sequence[Sample], judged: Sequence[Sample]) -> dict[str, float]:
    """Accuracy per type of the commonest training answer to the same words (to the same type, for unknown words)."""
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in train:
        by_text[sample.question][sample.answer] += 1
        by_type[sample.tags["type"]][sample.answer] += 1
    hits: dict[str, list[bool]] = defaultdict(list)
    for sample in judged:
        known = by_text.get(sample.question) or by_type[sample.tags["type"]]
        hits[sample.tags["type"]].append(known.most_common(1)[0][0] == sample.answer)
    return {kind: float(np.mean(found)) for kind, found in hits.items()}


@pytest.mark.parametrize("split", ["test", "unseen"])
def test_nothing_can_be_guessed(split: str, splits: dict[str, Sequence[Sample]]) -> None:
    rates = blind_rates(splits["train"], splits[split])
    assert set(rates) == set(QUESTIONS) and max(rates.values()) <= 0.55, rates


def covered(shape: str, dx: np.ndarray, dy: np.ndarray, r: float) -> np.ndarray:
    """Which offsets from its centre a shape of radius r covers."""
    return {
        "circle": dx**2 + dy**2 <= r**2,
        "square": np.maximum(abs(dx), abs(dy)) <= r,
        "triangle": (abs(dy) <= r) & (abs(dx) <= (dy + r) / 2),
        "diamond": abs(dx) + abs(dy) <= r,
        "cross": (np.minimum(abs(dx), abs(dy)) <= r / 3) & (np.maximum(abs(dx), abs(dy)) <= r),
    }[shape]


def between(mask: np.ndarray) -> np.ndarray:
    """Also what lies between two pixels of its row and two of its column: where white meets the edge, it is grey."""
    reach = [
        np.flip(np.logical_or.accumulate(np.flip(mask, flipped), axis), flipped)
        for axis in (0, 1)
        for flipped in ((), (axis,))
    ]
    return np.logical_and.reduce(reach)


def test_pictures_show_the_scene(splits: dict[str, Sequence[Sample]], scenes: dict[str, list[list[Item]]]) -> None:
    """From the pixels alone, the nearest colour and the best overlapping outline are the object's, by a margin."""
    palette = np.array(list(COLOURS.values()))
    centres = np.arange(64) + 0.5
    for sample in splits["test"][::23]:
        pixels = np.asarray(Image.open(io.BytesIO(sample.images[0].data)), dtype=float)
        assert pixels.shape == (64, 64, 3) and sample.images[0].size == (64, 64)
        for item in scenes["test"][number_of(sample)]:
            colour = pixels[int(item.y), int(item.x)]
            away = np.sort(((palette - colour) ** 2).sum(1) ** 0.5)
            assert (
                list(COLOURS)[int(((palette - colour) ** 2).sum(1).argmin())] == item.colour and away[1] > 2 * away[0]
            )
            dx, dy = centres[None] - item.x, centres[:, None] - item.y
            near = np.maximum(abs(dx), abs(dy)) <= item.side / 2
            to_item, to_ground = (((pixels - c) ** 2).sum(2) ** 0.5 for c in (colour, pixels[0, 0]))
            half = ((pixels[0, 0] - OUTLINE) ** 2).sum() ** 0.5 / 2  # a pixel of the rim that is half covered
            painted = between(near & ((to_ground > half) | (to_item < 20)))
            overlap = {}
            for shape in SHAPES:
                there = covered(shape, dx, dy, item.side / 2)
                overlap[shape] = (there & painted).sum() / (there | painted).sum()
            second, best = sorted(overlap.values())[-2:]
            assert overlap[item.shape] == best > second + 0.1, (sample.id, item, overlap)


def test_edges_are_dark_and_as_wide(splits: dict[str, Sequence[Sample]], scenes: dict[str, list[list[Item]]]) -> None:
    """Squares, whose edges can be counted: an outline of 1.25 pixels inside a side of s covers s² - (s - 2.5)²."""
    shares = []
    for sample in splits["test"][::23]:
        pixels = np.asarray(Image.open(io.BytesIO(sample.images[0].data)), dtype=float)
        for item in scenes["test"][number_of(sample)]:
            if item.shape == "square" and item.colour != "black":
                x, y, r = item.x, item.y, item.side / 2
                box = pixels[int(y - r) : int(y + r) + 1, int(x - r) : int(x + r) + 1]
                inside, ground = pixels[int(y), int(x)], pixels[0, 0]
                edge, *others = (((box - colour) ** 2).sum(2) for colour in (OUTLINE, inside, ground))
                shares.append((edge < np.minimum(*others)).sum() / (item.side**2 - (item.side - 2.5) ** 2))
    assert len(shares) > 20 and 0.75 < np.median(shares) < 1.1  # mixed pixels at the rims are nobody's


def test_objects_do_not_touch(scenes: dict[str, list[list[Item]]]) -> None:
    for items in scenes["test"] + scenes["unseen"]:
        assert 1 <= len(items) <= 6
        for n, a in enumerate(items):
            assert a.side / 2 < min(a.x, a.y, 64 - a.x, 64 - a.y)
            assert all(max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.side + b.side) / 2 + 1 for b in items[:n])


def test_the_seed_makes_the_data() -> None:
    def made(seed: int, split: str = "test") -> list[tuple[str, str, bytes]]:
        _split.cache_clear()
        samples = Shapes(ShapesConfig(images=20, seed=seed)).split(split) or []
        return [(s.question, s.answer, s.images[0].data) for s in samples]

    assert made(0) == made(0) != made(1)
    assert not {data for *_, data in made(0)} & {data for *_, data in made(0, "train")}
    few = made(0, "train")
    assert (
        few
        == [(s.question, s.answer, s.images[0].data) for s in (Shapes(ShapesConfig(images=40)).split("train") or [])][
            : len(few)
        ]
    )


def test_one_picture_is_one_image(splits: dict[str, Sequence[Sample]]) -> None:
    """Questions about a picture share its bytes, so that they can share its tokens."""
    assert len({id(sample.images[0].data) for sample in splits["val"]}) == 500


def test_an_image_is_asked_different_questions(splits: dict[str, Sequence[Sample]]) -> None:
    for questions in (1, 2, 3):
        asked: dict[str, list[str]] = defaultdict(list)
        for sample in Shapes(ShapesConfig(images=60, questions=questions)).split("train") or []:
            asked[f"{number_of(sample)} {sample.tags['type']}"].append(sample.question)
        assert max(map(len, asked.values())) == questions
        assert all(len(set(texts)) == len(texts) for texts in asked.values())
    assert len({sample.id for samples in splits.values() for sample in samples}) == sum(map(len, splits.values()))


def test_options_that_cannot_be_drawn_are_refused() -> None:
    for options in ({"largest": 30}, {"smallest": 9}, {"most": 9}, {"images": 0}, {"questions": 0}, {"seed": -1}):
        with pytest.raises(ConfigError, match="source 'shapes'"):
            ShapesConfig(**options)
    assert Shapes(CONFIG).split("dev") is None and Shapes.eval_splits == ("test", "unseen")
