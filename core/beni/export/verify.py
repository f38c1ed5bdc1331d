"""Does the exported model compute the same? Found by asking both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from beni.data.batch import Pictures
from beni.data.document import Composer
from beni.data.images import load_image
from beni.data.padded import pad
from beni.errors import ExportError, first_line
from beni.model.modeling import BeniForConditionalGeneration
from beni.sample import ImageRef, Sample, Turn
from beni.types import EncoderSpec, Size

LOGITS = 1e-4
"""Largest difference of logits that is rounding, as a part of the largest logit, in fp32."""
PIXELS = 0.1
"""Largest mean difference of pictures that is resampling, as a part of the way from black to white."""


@dataclass(frozen=True, slots=True)
class Check:
    """How far the native model is from beni's, on pictures and questions made for it."""

    logits: float
    """Largest difference, as a part of the largest logit."""
    pixels: float
    """Mean difference of prepared pictures, as a part of the way from black to white."""


def probes(spec: EncoderSpec) -> tuple[Sample, ...]:
    """A question about a wide picture, one about a tall one, one about two, and one about none."""
    width, height = spec.size
    wide, tall, even = (_picture(Size(w, h)) for w, h in ((2 * width, height), (width, 3 * height), spec.size))
    return (
        _asked((0, "what is it?"), wide),
        _asked((0, "\n", "what is it?"), tall),
        _asked(("compare ", 0, " and ", 1), even, wide),
        _asked(("hello there",)),
    )


def closest(processors: Sequence[Any], composer: Composer) -> Any:
    """Of several processors the one that prepares pictures most like the model's view."""
    return min(processors, key=lambda processor: max(_pixels(processor, composer)))


def verify(
    native: PreTrainedModel, processor: Any, model: BeniForConditionalGeneration, composer: Composer, silent: set[int]
) -> Check:
    """Ask both models the same.

    Args:
        native: the exported model, as it was read back.
        processor: its processor, as it was read back.
        model: beni's.
        composer: what feeds it.
        silent: tokens that beni's cannot predict.

    Raises:
        ExportError: tokens, pictures or logits differ; says by how much.
    """
    far = max(_pixels(processor, composer))
    if far > PIXELS:
        raise ExportError(
            f"the view prepares pictures in a way that {type(processor.image_processor).__name__} cannot: they differ "
            f"by {far:.1%} of the way from black to white; use --view single"
        )
    worst = 0.0
    for sample in probes(_spec(composer)):
        inputs = pad([composer.compose(sample, prompt_only=True)], Pictures(composer), 0)
        ids = inputs["input_ids"]
        native_ids = torch.where(ids == composer.image_token, processor.image_token_id, ids)
        _check_tokens(native_ids, processor, sample)
        pixels = {"pixel_values": inputs["pixel_values"][inputs["image_index"][0]]} if sample.images else {}
        try:
            with torch.no_grad():
                found = native(native_ids, **pixels).logits
                wanted = model(**inputs).logits
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"{type(native).__name__} cannot run these parts: {first_line(error)}") from error
        heard = [token for token in range(wanted.shape[-1]) if token not in silent]
        difference = (found[..., heard] - wanted[..., heard]).abs().max() / wanted[..., heard].abs().max()
        worst = max(worst, float(difference))
    if not worst < LOGITS:  # not a number is no equality either
        raise ExportError(
            f"{type(native).__name__} computes something else: logits differ by {worst:.1e} of the largest one, and "
            f"rounding is less than {LOGITS:.0e}: a part of this model has no equal there"
        )
    return Check(worst, far)


def _check_tokens(expected: Tensor, processor: Any, sample: Sample) -> None:
    pictures = iter(sample.images)
    content = [
        {"type": "image", "image": load_image(next(pictures))}
        if isinstance(part, int)
        else {"type": "text", "text": part}
        for part in sample.turns[0].content
    ]
    found = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    )["input_ids"]
    if found.tolist() != expected.tolist():
        ours, theirs = (processor.tokenizer.convert_ids_to_tokens(ids[0].tolist()) for ids in (expected, found))
        at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
        raise ExportError(
            f"{type(processor).__name__} reads a question as other tokens than the model was trained on: position {at} "
            f"of {len(ours)} is {theirs[at : at + 1]} instead of {ours[at : at + 1]}"
        )


def _pixels(processor: Any, composer: Composer) -> Iterator[float]:
    """Mean differences of probes' pictures."""
    spec = _spec(composer)
    std = torch.tensor(spec.std).view(3, 1, 1)
    pictures = Pictures(composer)
    for sample in probes(spec):
        if sample.images:
            inputs = pad([composer.compose(sample, prompt_only=True)], pictures, 0)
            wanted = inputs["pixel_values"][inputs["image_index"][0]]
            images = [load_image(ref) for ref in sample.images]
            found = processor.image_processor(images, return_tensors="pt")["pixel_values"]
            yield float(((found - wanted) * std).abs().mean())


def _spec(composer: Composer) -> EncoderSpec:
    return next(iter(composer.encoders.values()))


def _asked(content: tuple[str | int, ...], *images: ImageRef) -> Sample:
    return Sample("probe", (Turn("user", content), Turn("assistant", ("",))), images)


def _picture(size: Size) -> ImageRef:
    """Colours that change slowly, as in photographs."""
    across, down = (np.linspace(0, 1, n) for n in size)
    red, green = np.meshgrid(across, down)
    colours = np.stack([red, green, 0.5 + 0.5 * np.sin(6 * (red + green))], axis=-1)
    file = BytesIO()
    Image.fromarray((colours * 255).astype(np.uint8)).save(file, "png")
    return ImageRef(data=file.getvalue(), size=size)
