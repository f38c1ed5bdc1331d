"""Models of a few thousand parameters, images of noise, and the conversations that checks are about."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from beni.config import RunConfig, run_config_from_dict
from beni.data.batch import Pictures
from beni.data.document import Document
from beni.data.padded import pad
from beni.model.build import Built, build
from beni.sample import ImageRef, Sample, Turn
from beni.types import Size

ENCODER: dict[str, Any] = {
    "name": "tiny",
    "size": 16,
    "stem": [8, 16],
    "blocks": [0, 1],
    "width": 16,
    "layers": 1,
    "heads": 2,
    "merge": 1,
}
"""A grid of 4x4 tokens of 16 channels."""
SEVERAL_LAYERS: dict[str, Any] = {"layers": 2, "outputs": [0, 1, -1]}
"""Options of that encoder which give a fusion several layers to take apart."""
LLM: dict[str, Any] = {"name": "tiny", "width": 32, "layers": 3, "heads": 4, "ff_width": 48, "init_std": 0.2}
TEXTS = ["what is it? a cat. three cats, how many? compare them: all the same, blue. hello there, general kenobi"] * 3
"""What the small language model learns its vocabulary from."""


def configure(**tables: Any) -> RunConfig:
    """The configuration of a small model; `tables` replace those of the same name."""
    return run_config_from_dict({"encoders": {"main": ENCODER}, "llm": LLM, **tables})


def make(gates: float = 0.5, **tables: Any) -> Built:
    """A small model; the gates of its fusion, if it has any, stand open so that images matter."""
    built = build(configure(**tables), TEXTS)
    for gate in closed_gates(built.model.fusion):
        gate.data.fill_(gates)
    return built


def closed_gates(fusion: nn.Module) -> list[nn.Parameter]:
    """The parameters named …gate… that are zero: what keeps a fresh fusion from changing its language model."""
    named = fusion.named_parameters()
    return [value for name, value in named if "gate" in name.rpartition(".")[2] and not torch.count_nonzero(value)]


SIZE = Size(20, 12)


def noise(seed: int, size: Size = SIZE) -> ImageRef:
    """A picture unlike any other."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size.height, size.width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return ImageRef(data=file.getvalue(), size=size)


def talk(name: str, *turns: tuple[str | int, ...], images: tuple[ImageRef, ...] = ()) -> Sample:
    """A conversation, the user first."""
    roles = ("user", "assistant")
    return Sample(name, tuple(Turn(roles[i % 2], turn) for i, turn in enumerate(turns)), images)  # type: ignore[arg-type]


A, B, C, D, E = (
    noise(seed, Size(*size)) for seed, size in enumerate([(20, 12), (10, 30), (33, 33), (20, 12), (40, 14)])
)
CONVERSATIONS = (
    talk("what", (0, "what is it?"), ("a cat",), images=(A,)),
    talk("many", (0, "how many?"), ("three cats",), images=(A,)),
    talk("colour", (0, "colour?"), ("blue",), images=(A,)),
    talk("text", ("hello there",), ("general kenobi",)),
    talk("three", (0, 1, "compare with ", 2, " please"), ("all the same",), images=(B, C, D)),
    talk("turns", ("see: ", 0, " what is it?"), ("a cat",), ("and ", 1, "?"), ("three",), images=(B, E)),
)
"""Three questions about one image, none, three images, and images in two turns."""


def inputs(built: Built, samples: tuple[Sample, ...], prompt_only: bool = True) -> dict[str, Any]:
    """A padded batch."""
    documents: list[Document] = [built.composer.compose(sample, prompt_only) for sample in samples]
    pad_id = built.tokenizer.pad_token_id
    return pad(documents, Pictures(built.composer), pad_id if isinstance(pad_id, int) else 0)
