"""The questions and answers of easy-VQA without their pictures: what a language model reads before it is shown any."""

from collections.abc import Sequence
from dataclasses import replace

from beni.interfaces import Source
from beni.sample import Sample
from beni_plugins.sources.easy_vqa import EasyVqa, EasyVqaConfig


class Questions(Source):
    """The splits of `easy_vqa`, each question by itself, and nothing to look at."""

    beni_api = 1
    Config = EasyVqaConfig

    def split(self, name: str) -> Sequence[Sample] | None:
        shown = EasyVqa(self.config).split(name)
        return shown if shown is None else [_unseen(sample) for sample in shown]


def _unseen(sample: Sample) -> Sample:
    """The same words in the same turns, without the images."""
    turns = (replace(turn, content=tuple(p for p in turn.content if isinstance(p, str))) for turn in sample.turns)
    return replace(sample, turns=tuple(turns), images=())
