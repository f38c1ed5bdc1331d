"""Models of a few thousand parameters, images of noise, and the conversations that tests are about."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from beni.config import RunConfig, run_config_from_dict
from beni.data.batch import Pictures
from beni.data.document import Document
from beni.data.padded import pad
from beni.model.build import Built, build
from beni.sample import ImageRef, Sample, Turn
from beni.types import Size

ENCODER = {
    "name": "tiny",
    "size": 16,
    "stem": [8, 16],
    "blocks": [0, 1],
    "width": 16,
    "layers": 1,
    "heads": 2,
    "merge": 1,
}
LLM = {"name": "tiny", "width": 32, "layers": 3, "heads": 4, "ff_width": 48, "init_std": 0.2}
INLINE: dict[str, dict[str, Any]] = {"connector": {"name": "mlp"}, "fusion": {"name": "inline"}}
XATTN: dict[str, dict[str, Any]] = {
    "connector": {"name": "perceiver", "num_latents": 4, "depth": 1, "heads": 2, "head_width": 8},
    "fusion": {"name": "xattn", "heads": 2, "head_width": 8},
}
TILES = {"connector": {"name": "concat"}, "view": {"name": "split"}}
MLLAMA = XATTN | {"fusion": {**XATTN["fusion"], "variant": "mllama", "kv_heads": 1}}
ALL_IMAGES = XATTN | {"fusion": {**XATTN["fusion"], "images": "all"}}
COARSE = ENCODER | {"width": 24, "merge": 2}
SVA = {
    "encoders": {"main": ENCODER, "coarse": COARSE},
    "connector": {"name": "sva", "sides": [2], "width": 16, "heads": 2, "depth": 1},
    "fusion": {"name": "sva", "heads": 2, "newline": "row"},
    "view": {"name": "single", "fit": "pad"},
}
PYRAMID = {"name": "pyramid", "medium": ["1x2", "2x1"]}
SELECTED = {
    "connector": {"name": "dragonfly", "variant": "select", "inner": {"name": "concat"}},
    "view": PYRAMID,
}
POOLED = {
    "connector": {"name": "dragonfly", "pool": 2, "inner": XATTN["connector"]},
    "view": PYRAMID | {"levels": "low+medium"},
}
JOINED: dict[str, dict[str, Any]] = {
    "inline": INLINE,
    "xattn": XATTN,
    "inline-tiles": INLINE | TILES,
    "xattn-tiles": XATTN | TILES,
    "mllama": MLLAMA,
    "xattn-all": ALL_IMAGES,
    "sva": SVA,
    "inline-anyres": INLINE | {"connector": {"name": "concat"}, "view": {"name": "anyres", "shrink_to": 3}},
    "xattn-anyres": XATTN | {"view": {"name": "anyres", "merge": "flat"}},
}
"""Those that also work with several encoders."""
FUSIONS = JOINED | {"inline-dragonfly": INLINE | SELECTED, "xattn-dragonfly": XATTN | POOLED}
TEXTS = ["what is it? a cat. three cats, how many? compare them: all the same, blue. hello there, general kenobi"] * 3


def configure(parts: str, /, **tables: dict[str, Any]) -> RunConfig:
    """The configuration of a small model; `tables` replace those of the same name."""
    return run_config_from_dict({"encoders": {"main": ENCODER}, "llm": LLM, **FUSIONS[parts], **tables})


def make(parts: str, /, gates: float = 0.5, **tables: dict[str, Any]) -> Built:
    """A small model; the gates of its fusion, if it has any, stand open so that images matter."""
    built = build(configure(parts, **tables), TEXTS)
    for name, parameter in built.model.fusion.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(gates)
    return built


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
    return Sample(name, tuple(Turn(roles[i % 2], turn) for i, turn in enumerate(turns)), images)


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


def change_images(batch: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A batch with other pixels, for one encoder or several."""
    pixels = batch["pixel_values"]
    changed = {k: change(p) for k, p in pixels.items()} if isinstance(pixels, dict) else change(pixels)
    return dict(batch, pixel_values=changed)


def distinct_crops(built: Built, samples: tuple[Sample, ...]) -> int:
    """Crops of all images that are not the same."""
    images = {image.key: image for sample in samples for image in sample.images}
    return sum(len(built.composer.layout(image).crops["main"]) for image in images.values())
