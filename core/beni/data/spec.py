"""Data specs: `easy_vqa`, `llava:FILE`, `hf:ID?split=train&config=…` to a source and its splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from beni.config import choose
from beni.errors import ConfigError, DataError
from beni.interfaces import Source, load
from beni.sample import Sample


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A parsed spec: the source, and the split if it names one."""

    text: str
    source: Source
    split: str

    def samples(self, default_split: str) -> Sequence[Sample] | None:
        """The split that the spec names, else the default one; None if the source has no such split.

        Raises:
            DataError: the spec names a split that does not exist, or the split is empty.
        """
        samples = self.source.split(self.split or default_split)
        if samples is None and self.split:
            raise DataError(f"data '{self.text}' has no split '{self.split}'")
        if samples is not None and not len(samples):
            raise DataError(f"data '{self.text}', split '{self.split or default_split}', is empty")
        return samples


def parse(text: str) -> DataSpec:
    """Resolve a spec.

    Raises:
        PluginError: an unknown source.
        ConfigError: an option that the source does not have.
    """
    reference, _, query = text.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ConfigError(f"data '{text}' gives an option twice")
    split = options.pop("split", "")
    part = choose("source", reference, options, spelled=True)
    return DataSpec(text, load("source", part)(part.config), split)


def training(specs: Sequence[str]) -> list[Sequence[Sample]]:
    """The training samples of every spec.

    Raises:
        DataError: a source without a training split.
    """
    found = []
    for text in specs:
        samples = parse(text).samples("train")
        if samples is None:
            raise DataError(f"data '{text}' has no split 'train': name one with ?split=…")
        found.append(samples)
    return found


def validation(specs: Sequence[str]) -> list[Sequence[Sample]]:
    """The validation splits of those sources that have one."""
    parsed = [spec for spec in map(parse, specs) if not spec.split]
    return [samples for samples in (spec.samples("val") for spec in parsed) if samples is not None]


def judged(specs: Sequence[str], training_specs: Sequence[str]) -> dict[str, Sequence[Sample]]:
    """What is judged at the end, by name.

    Args:
        specs: what the user asked for; a spec without a split means the splits its source judges by default, or, for a
            source with only a training split (a file), that one.
        training_specs: judged instead if `specs` is empty, as far as their sources have such splits.
    """
    found: dict[str, Sequence[Sample]] = {}
    for text in specs or training_specs:
        spec = parse(text)
        splits = [spec.split] if spec.split else list(spec.source.eval_splits)
        if not specs and spec.split:
            continue  # a training split that was named is not a test split
        samples = {split: spec.samples(split) for split in splits}
        if specs and all(s is None for s in samples.values()):
            samples = {"train": spec.samples("train")}
        for split, these in samples.items():
            if these is not None:
                found[text if split == "train" and not spec.split else _name(text, split)] = these
    return found


def _name(text: str, split: str) -> str:
    return text if f"split={split}" in text else f"{text}{'&' if '?' in text else '?'}split={split}"
