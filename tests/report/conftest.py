"""A small model's composer with a few drawn pictures: real rows without training."""

import io
from collections.abc import Callable

import pytest
from PIL import Image, ImageDraw

from beni.config import run_config_from_dict
from beni.data.loader import Rows
from beni.data.plan import Lengths, Plan
from beni.model.build import Built, build
from beni.sample import ImageRef, Sample, Turn, vqa_sample

QUESTIONS = ("what colour is it?", "is it red?", "is it large?")
COLOURS = ("red", "green", "blue")

MakeRows = Callable[..., Rows]


def picture(colour: str, size: tuple[int, int] = (48, 32)) -> ImageRef:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle((8, 8, 24, 24), fill=colour)
    file = io.BytesIO()
    image.save(file, "png")
    return ImageRef(data=file.getvalue())


def questions() -> list[Sample]:
    """Three pictures with three questions each, then a text without a picture."""
    samples = [
        vqa_sample(f"{colour}-{number}", picture(colour), question, colour if number == 0 else "yes")
        for colour in COLOURS
        for number, question in enumerate(QUESTIONS)
    ]
    return [*samples, Sample("text", (Turn("text", ("the sky is blue",)),))]


@pytest.fixture(scope="session")
def built() -> dict[str, Built]:
    texts = [*QUESTIONS, *COLOURS, "yes", "the sky is blue"] * 2
    return {
        fusion: build(run_config_from_dict({"fusion": {"name": fusion}}), iter(texts)) for fusion in ("inline", "xattn")
    }


@pytest.fixture
def make_rows(built: dict[str, Built]) -> MakeRows:
    def make(samples: list[Sample], fusion: str = "inline", augment: float = 0.0) -> Rows:
        composer = built[fusion].composer
        plan = Plan([Lengths(samples, composer)], (), run_config_from_dict({}).batch, seed=0, shuffle=False)
        return Rows([samples], plan, composer, augment=augment)

    return make
