"""Pictures and questions that a model and its export are both asked about."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from beni.data.batch import Pictures
from beni.data.document import Composer
from beni.data.images import load_image
from beni.data.padded import pad, shown
from beni.sample import ImageRef, Sample, Turn
from beni.types import EncoderSpec, Size


class Probe(NamedTuple):
    """A conversation of one question."""

    sample: Sample
    answered: bool
    """Whether its answer is read as well: tokens that stand only behind answers."""

    def inputs(self, composer: Composer) -> dict[str, Any]:
        """Arguments of beni's model."""
        return pad([composer.compose(self.sample, prompt_only=not self.answered)], Pictures(composer), 0)


def probes(composer: Composer) -> tuple[Probe, ...]:
    """Questions about a wide picture, about a tall one, about two, about none, and one with its answer."""
    size = spec_of(composer).size
    width, height = size
    wide, tall, even = (_picture(Size(w, h)) for w, h in ((2 * width, height), (width, 3 * height), size))
    return (
        _asked((0, "what is it?"), wide),
        _asked((0, "\n", "what is it?"), tall),
        _asked(("compare ", 0, " and ", 1), even, wide),
        _asked(("hello there",)),
        _asked((0, "what is it?"), wide, answer="a picture"),
    )


def pixel_differences(processor: Any, composer: Composer) -> Iterator[float]:
    """How far a processor's pictures are from the view's, in the mean of each probe.

    As a part of the way from black to white.
    """
    std = torch.tensor(spec_of(composer).std).view(3, 1, 1)
    for probe in probes(composer):
        if probe.sample.images:
            inputs = probe.inputs(composer)
            wanted = inputs["pixel_values"][shown(inputs, 0)]
            images = [load_image(ref) for ref in probe.sample.images]
            found = processor.image_processor(images, return_tensors="pt")["pixel_values"]
            yield float(((found - wanted) * std).abs().mean())


def spec_of(composer: Composer) -> EncoderSpec:
    """Of the only encoder."""
    return next(iter(composer.encoders.values()))


def _asked(content: tuple[str | int, ...], *images: ImageRef, answer: str = "") -> Probe:
    return Probe(Sample("probe", (Turn("user", content), Turn("assistant", (answer,))), images), bool(answer))


def _picture(size: Size) -> ImageRef:
    """Colours that change slowly, as in photographs."""
    across, down = (np.linspace(0, 1, n) for n in size)
    red, green = np.meshgrid(across, down)
    colours = np.stack([red, green, 0.5 + 0.5 * np.sin(6 * (red + green))], axis=-1)
    file = BytesIO()
    Image.fromarray((colours * 255).astype(np.uint8)).save(file, "png")
    return ImageRef(data=file.getvalue(), size=size)
