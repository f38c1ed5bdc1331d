"""Small models of the built-in parts; what they are made of is in `beni.testing`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from beni.config import RunConfig
from beni.model.build import Built
from beni.sample import Sample
from beni.testing import small
from beni.testing.small import (
    CONVERSATIONS,
    ENCODER,
    LLM,
    SEVERAL_LAYERS,
    SIZE,
    TEXTS,
    A,
    B,
    C,
    D,
    E,
    inputs,
    noise,
    talk,
)

__all__ = [
    "CONVERSATIONS",
    "ENCODER",
    "FUSIONS",
    "INLINE",
    "JOINED",
    "LLM",
    "SIZE",
    "SVA",
    "TEXTS",
    "TILES",
    "XATTN",
    "A",
    "B",
    "C",
    "D",
    "E",
    "change_images",
    "configure",
    "distinct_crops",
    "inputs",
    "make",
    "noise",
    "talk",
]

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
DEEPSTACK = {
    "encoders": {"main": ENCODER | SEVERAL_LAYERS},
    "connector": {"name": "concat"},
    "fusion": {"name": "deepstack", "newline": "row"},
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
FUSIONS = JOINED | {
    "inline-dragonfly": INLINE | SELECTED,
    "xattn-dragonfly": XATTN | POOLED,
    "deepstack": DEEPSTACK,
    "deepstack-tiles": DEEPSTACK | {"view": {"name": "anyres"}},
}


def configure(parts: str, /, **tables: dict[str, Any]) -> RunConfig:
    """The configuration of a small model; `tables` replace those of the same name."""
    return small.configure(**FUSIONS[parts] | tables)


def make(parts: str, /, gates: float = 0.5, **tables: dict[str, Any]) -> Built:
    """A small model; the gates of its fusion, if it has any, stand open so that images matter."""
    return small.make(gates, **FUSIONS[parts] | tables)


def change_images(batch: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A batch with other pixels, for one encoder or several."""
    pixels = batch["pixel_values"]
    changed = {k: change(p) for k, p in pixels.items()} if isinstance(pixels, dict) else change(pixels)
    return dict(batch, pixel_values=changed)


def distinct_crops(built: Built, samples: tuple[Sample, ...]) -> int:
    """Crops of all images that are not the same."""
    images = {image.key: image for sample in samples for image in sample.images}
    return sum(len(built.composer.layout(image).crops["main"]) for image in images.values())
