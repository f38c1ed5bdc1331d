"""Checks of sources: splits that can be read in any order, samples with an answer, images that can be opened."""

import json
import pickle
from collections.abc import Iterator, Sequence
from typing import ClassVar

from beni.data.images import image_size, load_image
from beni.data.spec import listed
from beni.errors import ImageError
from beni.interfaces import Source, Stream, load
from beni.sample import Sample
from beni.testing.suite import Conformance, require

SPLITS = ("train", "val", "test")
FEW = 32
"""Samples that are looked at, from both ends of a split."""
PICTURES = 4
"""Images of a split that are opened."""


class SourceConformance(Conformance):
    """Subclass it and name your source: `part = "mine"`."""

    kind: ClassVar[str] = "source"

    def source(self) -> Source:
        """A fresh one."""
        return load("source", self.chosen())(self.chosen().config)

    def test_unknown_splits_are_none(self) -> None:
        require(self.source().split("no_such_split") is None, "`split` must return None for a split that is not there")

    def test_there_is_something_to_learn_or_to_judge(self) -> None:
        require(
            any(len(samples) for _, samples in self._splits()), f"none of the splits {', '.join(SPLITS)} has samples"
        )

    def test_samples_have_an_answer(self) -> None:
        for name, samples in self._splits():
            for sample in _few(samples):
                require(isinstance(sample, Sample), f"split '{name}' holds a {type(sample).__name__}, not a Sample")
                require(
                    sample.turns[-1].role in ("assistant", "text") and bool(sample.answer),
                    f"split '{name}', sample '{sample.id}': its last turn must be an answer that is not empty",
                )

    def test_ids_are_unique(self) -> None:
        for name, samples in self._splits():
            ids = [samples[at].id for at in range(len(samples))]
            require(len(set(ids)) == len(ids), f"split '{name}' gives {len(ids)} samples {len(set(ids))} ids")

    def test_samples_can_be_read_in_any_order(self) -> None:
        """By data workers, each with its own copy."""
        copies = dict(self._splits())
        for name, samples in self._splits():
            moved = pickle.loads(pickle.dumps(samples))
            require(len(moved) == len(samples), f"split '{name}' has another length after pickling")
            for at in (0, len(samples) - 1, len(samples) // 2, 0):
                require(
                    samples[at] == copies[name][at] == moved[at],
                    f"split '{name}', item {at} is another sample the second time",
                )

    def test_images_can_be_opened(self) -> None:
        for name, samples in self._splits():
            refs = [image for sample in _few(samples) for image in sample.images][:PICTURES]
            for ref in refs:
                try:
                    picture = load_image(ref)
                    told = image_size(ref)
                except ImageError as error:
                    raise AssertionError(f"split '{name}': {error}") from error
                require(tuple(told) == picture.size, f"split '{name}', image {ref.name}: its size is {picture.size}")

    def test_streams_go_on_where_they_were(self) -> None:
        """In another process, from a position that was written to a checkpoint."""
        for name in SPLITS:
            stream = self.source().split(name)
            if not isinstance(stream, Stream):
                continue
            whole = stream.read(None, FEW)
            cut = stream.read(None, max(1, len(whole.samples) // 2))
            position = json.loads(json.dumps(cut.position))
            behind = self.source().split(name).read(position, FEW - len(cut.samples))  # type: ignore[union-attr]
            require(
                cut.samples + behind.samples == whole.samples,
                f"split '{name}', a stream, gives other samples when it goes on behind item {len(cut.samples)}",
            )

    def _splits(self) -> Iterator[tuple[str, Sequence[Sample]]]:
        source = self.source()
        for name in dict.fromkeys((*SPLITS, *source.eval_splits)):
            found = source.split(name)
            samples = listed(found) if isinstance(found, Stream) else found
            if samples:
                yield name, samples


def _few(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Some from the front, some from the back."""
    for at in dict.fromkeys([*range(min(FEW, len(samples))), *range(max(0, len(samples) - FEW), len(samples))]):
        yield samples[at]
