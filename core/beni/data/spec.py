"""Data specs: `easy_vqa`, `llava:FILE`, `hf:ID?split=train&config=…` to a source and its splits.

Four options belong to every source and not to its own `Config`: `split`, `template`, `loss_weight` and `metric`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any
from urllib.parse import parse_qsl

from beni.config import choose
from beni.data.template import read_template
from beni.errors import ConfigError, DataError
from beni.interfaces import Reading, Source, Stream, load
from beni.sample import METRICS, Metric, Sample

LISTED = 1000
"""Items of a stream that are read at once to list all of it."""


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A parsed spec: the source, and what the spec says beside the source's own options."""

    text: str
    source: Source
    split: str
    """Empty if it names none."""
    template: str
    """Chat template of this source's samples, by name or file; empty: the run's."""
    loss_weight: float
    """How much each target of this source counts in the loss of a training step."""
    metric: Metric
    """How its answers are judged."""

    def training(self) -> Sequence[Sample] | Stream:
        """What is trained on: the split that the spec names, else `train`, with its weight in the loss.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        found = self._split("train")
        if found is None:
            raise DataError(f"data '{self.text}' has no split 'train': name one with ?split=…")
        fields = self._fields() | ({} if self.loss_weight == 1 else {"loss_weight": self.loss_weight})
        if isinstance(found, Stream):
            return StreamWith(found, **fields) if fields else found
        return With(found, **fields) if fields else found

    def samples(self, default_split: str) -> Sequence[Sample] | None:
        """The split that the spec names, else the default one; None if the source has no such split.

        A stream is read to its end.

        Raises:
            DataError: the spec names a split that does not exist, or the split is empty.
        """
        found = self._split(default_split)
        samples = listed(found) if isinstance(found, Stream) else found
        fields = self._fields() | ({} if self.metric == "exact" else {"metric": self.metric})
        return With(samples, **fields) if samples is not None and fields else samples

    def _split(self, default: str) -> Sequence[Sample] | Stream | None:
        found = self.source.split(self.split or default)
        if found is None and self.split:
            raise DataError(f"data '{self.text}' has no split '{self.split}'")
        if found is not None and not (found.read(None, 1).samples if isinstance(found, Stream) else len(found)):
            raise DataError(f"data '{self.text}', split '{self.split or default}', is empty")
        return found

    def _fields(self) -> dict[str, Any]:
        return {"template": self.template} if self.template else {}


class With(Sequence[Sample]):
    """Samples with some of their fields changed, each when it is asked for."""

    def __init__(self, samples: Sequence[Sample], **fields: Any) -> None:
        self.samples = samples
        self.fields = fields

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return replace(self.samples[index], **self.fields)


class StreamWith(Stream):
    """A stream whose samples have some of their fields changed."""

    def __init__(self, stream: Stream, **fields: Any) -> None:
        self.stream = stream
        self.fields = fields

    def read(self, position: Any, count: int) -> Reading:
        reading = self.stream.read(position, count)
        return replace(reading, samples=[replace(sample, **self.fields) for sample in reading.samples])


def listed(stream: Stream) -> list[Sample]:
    """All samples of a stream."""
    samples: list[Sample] = []
    reading = stream.read(None, LISTED)
    while reading.samples:
        samples += reading.samples
        reading = stream.read(reading.position, LISTED)
    return samples


def parse(text: str) -> DataSpec:
    """Resolve a spec.

    Raises:
        PluginError: an unknown source.
        ConfigError: an option that the source does not have, a template or a metric that is none, or a weight below 0.
    """
    reference, _, query = text.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ConfigError(f"data '{text}' gives an option twice")
    split, template = options.pop("split", ""), options.pop("template", "")
    weight = options.pop("loss_weight", "1")
    metric = options.pop("metric", METRICS[0])
    if metric not in METRICS:
        raise ConfigError(f"data '{text}': metric is '{metric}'; it can be {', '.join(METRICS)}")
    if template:
        try:
            read_template(template)
        except ConfigError as error:
            raise ConfigError(f"data '{text}', template {template}: {error}") from error
    part = choose("source", reference, options, spelled=True)
    return DataSpec(text, load("source", part)(part.config), split, template, _weight(weight, text), metric)


def _weight(value: str, text: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = -1
    if not 0 <= weight < inf:
        raise ConfigError(f"data '{text}': loss_weight is '{value}'; it must be a number, at least 0")
    return weight


def training(specs: Sequence[str]) -> list[Sequence[Sample] | Stream]:
    """The training samples of every spec, with their weights in the loss.

    Raises:
        DataError: a source without a training split.
        ConfigError: every source's weight in the loss is 0.
    """
    parsed = [parse(text) for text in specs]
    if not any(spec.loss_weight for spec in parsed):
        raise ConfigError("every source has loss_weight 0: there would be nothing to learn")
    return [spec.training() for spec in parsed]


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
