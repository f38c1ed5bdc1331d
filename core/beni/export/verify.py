"""Does the exported model compute the same? Found by asking both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from beni.data.document import Composer
from beni.data.images import load_image
from beni.errors import ExportError
from beni.export.foreign import foreign
from beni.export.probes import Probe, Shown, pixel_differences, probes
from beni.export.target import Target
from beni.model.modeling import BeniForConditionalGeneration
from beni.sample import Sample

LOGITS = 1e-4
"""Largest difference of logits that is rounding, as a part of the largest logit, in fp32."""
ANSWER = 4
"""Tokens that both write."""


@dataclass(frozen=True, slots=True)
class Check:
    """How far the native model is from beni's, on pictures and questions made for it."""

    logits: float
    """Largest difference, as a part of the largest logit."""
    pixels: float
    """Mean difference of prepared pictures, as a part of the way from black to white."""


class Pair(NamedTuple):
    """A model, and what it became, as it was read back."""

    model: BeniForConditionalGeneration
    composer: Composer
    silent: set[int]
    """Tokens that the model cannot predict."""
    native: PreTrainedModel
    processor: Any
    target: Target


def verify(pair: Pair, tolerance: float) -> Check:
    """Ask both models the same.

    Args:
        pair: both.
        tolerance: of prepared pictures.

    Raises:
        ExportError: tokens, pictures, logits or answers differ; says by how much.
    """
    far = max(pixel_differences(pair.processor, pair.composer))
    if not far <= tolerance:
        raise ExportError(
            f"the view prepares pictures in a way that {type(pair.processor.image_processor).__name__} cannot: they "
            f"differ by {far:.1%} of the way from black to white; use {pair.target.view}"
        )
    with torch.no_grad():
        worst = max(_ask(pair, probe) for probe in probes(pair.composer))
    return Check(worst, far)


def native_prompt(ids_BT: Int[Tensor, "B T"], composer: Composer, processor: Any, target: Target) -> Int[Tensor, "B T"]:
    """A prompt as the class reads it: its placeholder wherever it puts a visual token."""
    placed = composer.template.tokenizer.convert_tokens_to_ids(list(target.visual_tokens))
    return ids_BT.masked_fill(
        torch.isin(ids_BT, torch.tensor([composer.image_token, *placed])), processor.image_token_id
    )


def _ask(pair: Pair, probe: Probe) -> float:
    """By how much logits of a probe differ, as a part of the largest one."""
    native, name = pair.native, type(pair.native).__name__
    inputs = probe.inputs(pair.composer)
    prompt = native_prompt(inputs["input_ids"], pair.composer, pair.processor, pair.target)
    visual = pair.target.visual(*Shown.of(probe, pair.composer)) if probe.sample.images else {}
    if not probe.answered:
        _check_tokens(prompt, pair.processor, probe.sample)
    wanted = pair.model(**inputs).logits
    with foreign(name, "run"):
        found = native(prompt, **visual).logits
    heard = [token for token in range(wanted.shape[-1]) if token not in pair.silent]
    wanted, found = wanted[..., heard], found[..., heard]
    if not wanted.isfinite().all():
        raise ExportError("the model's logits are not numbers (NaN or infinite): its training went wrong")
    differ = float((found - wanted).abs().max() / wanted.abs().max())
    if not differ < LOGITS:  # not a number is no equality either
        raise ExportError(
            f"{name} computes something else: logits differ by {differ:.1e} of the largest one, and rounding is less "
            f"than {LOGITS:.0e}: a part of this model has no equal there"
        )
    if not probe.answered:
        _check_answer(pair, inputs, {"input_ids": prompt, **visual})
    return differ


def _check_answer(pair: Pair, inputs: Mapping[str, Any], native_inputs: Mapping[str, Tensor]) -> None:
    """Both go on in the same words, with their caches."""
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": ANSWER}
    start = inputs["input_ids"].shape[1]
    wanted = pair.model.generate(**inputs, **options)[0, start:].tolist()
    name = type(pair.native).__name__
    with foreign(name, "answer with"):
        found = pair.native.generate(**native_inputs, **options)[0, start:].tolist()
    if found != wanted:
        raise ExportError(f"{name} goes on with the tokens {found} where the model goes on with {wanted}")


def _check_tokens(expected: Tensor, processor: Any, sample: Sample) -> None:
    pictures = iter(sample.images)
    content = [
        {"type": "image", "image": load_image(next(pictures))}
        if isinstance(part, int)
        else {"type": "text", "text": part}
        for part in sample.turns[0].content
    ]
    with foreign(type(processor).__name__, "read questions for"):
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
