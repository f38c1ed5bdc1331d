"""What all contenders train on: conversations of mixed lengths with no image, one or several, and the parts' sizes."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPVisionConfig

WORDS = (
    *("a", "red", "blue", "small", "large", "round", "square", "shape", "stands", "left", "right", "above", "below"),
    *("near", "the", "of", "and", "it", "with", "there", "is"),
)
IMAGES = (0, 1, 1, 1, 1, 2, 3, 0)
"""How many images samples show, in turn."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the vision encoder and of what is trained on; by default CLIP ViT-B/32 and texts of 100 words."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 32
    side: int = 224
    samples: int = 512
    words: float = 75
    """Mean of a text, which is lognormal; a word is a little more than a token."""
    spread: float = 0.7
    """Of its logarithm."""


def write_encoder(folder: Path, sizes: Sizes) -> Path:
    """A folder as Hugging Face keeps vision models, without weights: they are drawn."""
    folder.mkdir(parents=True)
    CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        image_size=sizes.side,
        patch_size=sizes.patch,
    ).save_pretrained(folder)
    colours = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    return folder


def write_samples(folder: Path, sizes: Sizes, seed: int = 0) -> Path:
    """LLaVA JSON with its pictures beside it."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    mean = np.log(sizes.words) - sizes.spread**2 / 2
    items = []
    for number in range(sizes.samples):
        images = [f"{number}-{index}.png" for index in range(IMAGES[number % len(IMAGES)])]
        for name in images:
            _picture(random, sizes.side).save(folder / name)
        length = max(8, round(float(random.lognormal(mean, sizes.spread))))
        words = random.choice(WORDS, length).tolist()
        asked, answered = words[: length // 3], words[length // 3 :]
        turns = [
            {"from": "human", "value": "<image>\n" * len(images) + " ".join(asked)},
            {"from": "gpt", "value": " ".join(answered)},
        ]
        items.append({"id": str(number), "conversations": turns} | ({"image": images} if images else {}))
    path = folder / "train.json"
    path.write_text(json.dumps(items))
    return path


def _picture(random: np.random.Generator, side: int) -> Image.Image:
    """Smooth colours, as photographs have them, at a size that is not the encoder's."""
    coarse = random.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((side + side // 2, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "png")
    return Image.open(io.BytesIO(file.getvalue()))
