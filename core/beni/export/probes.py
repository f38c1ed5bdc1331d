"""Pictures and questions that a model and its export are both asked about."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

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


class Shown(NamedTuple):
    """The pictures of a probe in reading order, as beni prepares them."""

    crops: list[Float[Tensor, "_ 3 height width"]]
    sizes: list[Size]

    @classmethod
    def of(cls, probe: Probe, composer: Composer) -> "Shown":
        """Cut and normalised for the only encoder."""
        inputs = probe.inputs(composer)
        layouts = [composer.view.layout(Size(*size), composer.encoders) for size in inputs["image_sizes"].tolist()]
        [counts] = zip(*([len(crops) for crops in layout.crops.values()] for layout in layouts), strict=True)
        crops, order = inputs["pixel_values"].split(counts), shown(inputs, 0)
        return cls([crops[index] for index in order], [layouts[index].size for index in order])


def probes(composer: Composer) -> tuple[Probe, ...]:
    """Questions about a wide picture, about a tall one, about two, about none, and one with its answer.

    Sides are multiples of the encoder's, but for one picture of the two, which fills no grid of tiles.
    """
    size = spec_of(composer).size
    width, height = size
    wide, tall = _picture(Size(2 * width, height)), _picture(Size(width, 3 * height))
    even, odd = _picture(size), _picture(Size(5 * width // 2 + 1, height - 3))
    return (
        _asked((0, "what is it?"), wide),
        _asked((0, "\n", "what is it?"), tall),
        _asked(("compare ", 0, " and ", 1), even, odd),
        _asked(("hello there",)),
        _asked((0, "what is it?"), wide, answer="a picture"),
    )


def pixel_differences(processor: Any, composer: Composer) -> Iterator[float]:
    """How far a processor's pictures are from the view's, in the mean of each probe.

    As a part of the way from black to white; all of it where they are cut into other crops.
    """
    std = torch.tensor(spec_of(composer).std).view(3, 1, 1)
    for probe in probes(composer):
        if probe.sample.images:
            wanted = torch.cat(Shown.of(probe, composer).crops)
            found = torch.cat([_prepared(processor, load_image(ref)) for ref in probe.sample.images])
            yield float(((found - wanted) * std).abs().mean()) if found.shape == wanted.shape else 1.0


def _prepared(processor: Any, picture: Image.Image) -> Float[Tensor, "C 3 height width"]:
    """The crops of one picture, without those that fill batches."""
    return processor.image_processor([picture], return_tensors="pt")["pixel_values"].flatten(end_dim=-4)


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
