"""Small models of the built-in parts; what they are made of is in `beni.testing`."""

from typing import Any

from beni.config import RunConfig
from beni.model.build import Built
from beni.sample import Sample
from beni.testing import small
from beni.testing.small import CONVERSATIONS, ENCODER, LLM, SIZE, TEXTS, A, B, C, D, E, inputs, noise, talk

__all__ = [
    "CONVERSATIONS",
    "ENCODER",
    "FUSIONS",
    "INLINE",
    "LLM",
    "SIZE",
    "TEXTS",
    "TILES",
    "XATTN",
    "A",
    "B",
    "C",
    "D",
    "E",
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
FUSIONS = {"inline": INLINE, "xattn": XATTN, "inline-tiles": INLINE | TILES, "xattn-tiles": XATTN | TILES}


def configure(fusion: str, **tables: dict[str, Any]) -> RunConfig:
    """The configuration of a small model; `tables` replace those of the same name."""
    return small.configure(**FUSIONS[fusion] | tables)


def make(fusion: str, gates: float = 0.5, **tables: dict[str, Any]) -> Built:
    """A small model; the gates of its fusion, if it has any, stand open so that images matter."""
    return small.make(gates, **FUSIONS[fusion] | tables)


def distinct_crops(built: Built, samples: tuple[Sample, ...]) -> int:
    """Crops of all images that are not the same."""
    images = {image.key for sample in samples for image in sample.images}
    return len(images) * len(built.composer.view.bound(built.composer.encoders).crops["main"])
