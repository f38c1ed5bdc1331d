"""easy-VQA (Zhou 2020): 5,000 images of one coloured shape, 48,248 questions, from the PyPI package of that name."""

from collections.abc import Sequence
from dataclasses import dataclass

import easy_vqa

from beni.config import PartConfig
from beni.interfaces import Source
from beni.sample import ImageRef, Sample, vqa_sample

VAL_EVERY = 20
"""Every 20th training image (5 %) is held out as `val`."""
COLOURS = {"black", "gray", "red", "green", "blue", "yellow", "teal", "brown"}


@dataclass(frozen=True, slots=True)
class EasyVqaConfig(PartConfig):
    pass


class EasyVqa(Source):
    """Splits train (3,800 images), val (200 of the training images) and test (the official 1,000)."""

    beni_api = 1
    Config = EasyVqaConfig

    def split(self, name: str) -> Sequence[Sample] | None:
        if name not in ("train", "val", "test"):
            return None
        official = "test" if name == "test" else "train"
        read = {
            "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
            "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
        }
        questions, paths = read[official][0](), read[official][1]()
        held_out = {image for number, image in enumerate(sorted(paths)) if number % VAL_EVERY == 0}
        return [
            vqa_sample(f"{official}-{number}", ImageRef(path=paths[image]), question, answer, {"type": _type(answer)})
            for number, (question, answer, image) in enumerate(zip(*questions, strict=True))
            if name == "test" or (image in held_out) == (name == "val")
        ]


def _type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "colour" if answer in COLOURS else "shape"
