"""A few drawn pictures with questions about them."""

import io
from collections.abc import Callable

from PIL import Image, ImageDraw

from beni.data.loader import Rows
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
