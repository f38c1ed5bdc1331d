"""Small saved models to export, questions about pictures, and a process that has never heard of beni."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from beni.data.images import load_image
from beni.export.probes import Probe, Shown
from beni.export.target import Source, Target
from beni.export.verify import native_prompt
from beni.model.build import Built
from beni.sample import Sample
from beni.types import Size
from tests.model.small import inputs, make, noise, talk
from tests.model.test_saved import save
from tests.plugins.encoders.test_hf import publish

NEW = 6
QUESTIONS = (
    talk("what", (0, "what is it?"), ("",), images=(noise(0),)),
    talk("two", ("compare ", 0, " and ", 1), ("",), images=(noise(1), noise(2, Size(12, 41)))),
    talk("text", ("hello there",), ("",)),
)
_ALONE = """
import json, sys
sys.modules["beni"] = sys.modules["beni_plugins"] = None
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, chats, new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
def answer(chats):
    batch = processor.apply_chat_template(chats, tokenize=True, return_dict=True, add_generation_prompt=True,
                                          return_tensors="pt", processor_kwargs=dict(padding=True))
    out = model.generate(**batch, do_sample=False, min_new_tokens=new, max_new_tokens=new)
    return out[:, batch["input_ids"].shape[1]:].tolist()
print(json.dumps([[answer([chat])[0] for chat in chats], answer(chats)]))
"""


def trained(folder: Path, family: str = "clip_vision_model", /, **tables: Any) -> Built:
    """A model around a published encoder, saved; weights are random, so that answers are unlike each other."""
    publish(folder / "encoder", family)
    encoder = {"name": "hf", "model": str(folder / "encoder")} | tables.pop("encoder", {})
    built = make(tables.pop("parts", "inline"), **{"encoders": {"main": encoder}} | tables)
    built.model.eval()
    save(built, folder / "model")
    return built


def answers(built: Built) -> list[list[int]]:
    """What beni's model says to the questions."""
    options: dict[str, Any] = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW}
    batches = [inputs(built, (sample,)) for sample in QUESTIONS]
    return [built.model.generate(**batch, **options)[0, batch["input_ids"].shape[1] :].tolist() for batch in batches]


def native_inputs(built: Built, sample: Sample, processor: Any, target: Target) -> dict[str, Tensor]:
    """A question in the native class's form, with pictures as beni prepares them."""
    prompt = native_prompt(inputs(built, (sample,))["input_ids"], built.composer, processor, target)
    visual = target.visual(*Shown.of(Probe(sample, answered=False), built.composer)) if sample.images else {}
    return {"input_ids": prompt, **visual}


def native_answers(built: Built, native: PreTrainedModel, processor: Any, target: Target) -> list[list[int]]:
    """What the native model says to the questions."""
    options: dict[str, Any] = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW}
    batches = [native_inputs(built, sample, processor, target) for sample in QUESTIONS]
    return [native.generate(**batch, **options)[0, batch["input_ids"].shape[1] :].tolist() for batch in batches]  # type: ignore[operator]


def logits_differ_by(
    built: Built, native: PreTrainedModel, processor: Any, target: Target, sample: Sample, silent: set[int]
) -> float:
    """As a part of the largest logit."""
    with torch.no_grad():
        wanted = built.model(**inputs(built, (sample,))).logits
        found = native(**native_inputs(built, sample, processor, target)).logits
    heard = [token for token in range(wanted.shape[-1]) if token not in silent]
    return float((found[..., heard] - wanted[..., heard]).abs().max() / wanted[..., heard].abs().max())


def check_same(
    built: Built, out: Path, target: Target, native_class: type[PreTrainedModel], shapes: Sequence[Size]
) -> None:
    """An export is of that class, and has the model's logits and answers: of pictures of these shapes one by one, of
    three together, and of none."""
    native, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert type(native) is native_class
    silent = set(native.generation_config.suppress_tokens)
    pictures = [noise(seed, shape) for seed, shape in enumerate(shapes)]
    asked = [talk("one", (0, "what is it?"), ("",), images=(picture,)) for picture in pictures]
    asked += [talk("three", (0, 1, "compare with ", 2), ("",), images=tuple(pictures[:3])), QUESTIONS[-1]]
    for sample in asked:
        sizes = [tuple(image.size or ()) for image in sample.images]
        assert logits_differ_by(built, native, processor, target, sample, silent) < 1e-5, sizes
    assert native_answers(built, native, processor, target) == answers(built)


def off(target: Target, weight: str) -> Target:
    """A target whose models have one weight that is off."""

    def model(source: Source) -> PreTrainedModel:
        native = target.model(source)
        native.get_parameter(weight).data[0] += 0.1
        return native

    return target._replace(model=model)


def chat(sample: Sample, where: Path) -> list[dict[str, Any]]:
    """A question as Transformers has it, its pictures in files."""
    content: list[dict[str, str]] = []
    for part in sample.turns[0].content:
        if isinstance(part, int):
            file = where / f"{sample.id}{part}.png"
            load_image(sample.images[part]).save(file)
            content.append({"type": "image", "path": str(file)})
        else:
            content.append({"type": "text", "text": part})
    return [{"role": "user", "content": content}]


def answers_without_beni(out: Path, where: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Those of a process that cannot import beni: one by one, and in a padded batch.

    Args:
        out: the exported model.
        where: a folder for files of pictures.
    """
    chats = [chat(sample, where) for sample in QUESTIONS]
    told = subprocess.run(
        [sys.executable, "-c", _ALONE, str(out), json.dumps(chats), str(NEW)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": ""},
    ).stdout
    alone, together = json.loads(told)
    return alone, together
