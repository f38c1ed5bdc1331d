"""The card of a saved model: what it is made of, how it was trained, what it scored; from the run's own records."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError

from beni.errors import ConfigError, first_line
from beni.report.figures import MISSING
from beni.report.page import ScoreRow, score_rows, title_of
from beni.report.parts import PartRow, parts_of
from beni.report.render import fill, write_whole

TASK = "image-text-to-text"
FOLDER = re.compile(r"(?:^|(?<=[:=,\s]))(?!//)~?/(?:[^\s?&:,/]+/)*")
"""An absolute path up to its last name; not the host of a URL."""
PIECE = re.compile(r"[^?&=,\"'\[\]()]+")
"""What stands between the marks of a data spec, or of a list."""
PATH = re.compile(r"(\s*(?:[\w.]+:(?!//))?)((?:file://)?(?:/|~|\.\./).*)")
"""A piece that is the name of a source or nothing, and then a path on this machine, with whatever is in it."""
USER = re.compile(r"(?<=://)[^/@\s]*@")
"""Who logs in at a URL, and the password."""
HUB_ID = re.compile(r"(?:hf:|timm:|hub:|cache:)?([\w.-]+/[\w.-]+)(?:[@?].*)?")
"""A model or dataset of the hub, as parts and data are named; with its revision or options."""
BUILT_WITH = ("llm",)
"""Kinds of parts that make a model, and that a saved one does not need."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A model as a class of Transformers."""

    native: str
    """The class."""
    to: str
    """Its family, as `beni export` calls it."""
    logits: float
    """By how much its logits differ from those of the model that it was made of, as a part of the largest."""
    pixels: float
    """By how much its prepared pictures differ, as a part of the way from black to white."""


def write_card(path: Path, result: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Write the README.md of a model's folder, with the metadata that the Hugging Face hub reads.

    Args:
        path: the file; its folder exists.
        result: what result.json holds; figures that are missing or None are left out or shown as a dash.
        config: what config.json holds: the options, and what happened to parts.
    """
    title = public(title_of(config))
    rows = score_rows(result.get("evaluations") or {})
    parts = list(_parts(config, result.get("parameters") or {}))
    data = config.get("data") or {}
    specs = [*(data.get("data") or ()), *(data.get("eval_data") or ())]
    metadata = ModelCardData(
        model_name=title,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["beni", "vision-language", *dict.fromkeys(part.row.name for part in parts if part.row.kind in _NAMING)],
        base_model=_hub_ids(table["origin"] for table in (config.get("loaded") or {}).values()),
        datasets=_hub_ids(spec for spec in specs if spec.startswith("hf:")),
        eval_results=list(_results(rows)) or None,
    )
    values = {
        "title": title,
        "parts": parts,
        "needs": sorted({part.row.origin for part in parts if part.row.kind not in BUILT_WITH and part.row.origin}),
        "adapted": config.get("adapted") or {},
        "quantized": config.get("quantized") or {},
        "config": config,
        "data": _data(data),
        "rows": rows,
        "result": result,
        "public": public,
        "validation": {name: value for name, value in result.items() if name.startswith("val_")},
    }
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{fill('card.md.jinja', values, escape=False)}\n")
    write_whole(path, str(card))


def metadata_of(path: Path) -> ModelCardData:
    """What a saved model's card tells the hub; of one without a card, what it is for.

    Raises:
        ConfigError: the card was edited, and the hub could not read it.
    """
    metadata = ModelCardData()
    if path.is_file():
        try:
            metadata = ModelCard.load(path).data
        except (ValueError, YAMLError) as error:
            raise ConfigError(
                f"{path}: its metadata cannot be read ({first_line(error)}): mend them, or move it away"
            ) from error
    metadata.library_name, metadata.pipeline_tag = "transformers", TASK
    return metadata


def write_exported_card(path: Path, metadata: ModelCardData, exported: Exported) -> None:
    """Write the README.md of a model that was exported as a class of Transformers' own.

    Args:
        path: the file; its folder exists.
        metadata: of the model that it was made of; the hub is told the same.
        exported: how.
    """
    text = fill("exported.md.jinja", asdict(exported) | {"title": metadata.get("model_name")}, escape=False)
    write_whole(path, f"---\n{metadata.to_yaml()}\n---\n\n{text}\n")


_NAMING = ("connector", "fusion")


def public(text: str) -> str:
    """A text without the folders of this machine, of each path that leads through them its last name, and passwords."""
    return FOLDER.sub("", PIECE.sub(lambda piece: _last_name(piece[0]), USER.sub("", text.rstrip("/"))))


def _last_name(piece: str) -> str:
    found = PATH.fullmatch(piece)
    return found[1] + found[2].rstrip("/").rpartition("/")[2] if found else piece


@dataclass(frozen=True, slots=True)
class CardPart:
    """A part of the model and where its weights came from."""

    row: PartRow
    options: str
    """Those that a person would ask about."""
    weights: str
    """Where they came from; empty: from scratch."""
    sha256: str
    trained: int | None
    """Of its parameters; None: nobody recorded it."""


def _parts(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[CardPart]:
    loaded, trained = config.get("loaded") or {}, parameters.get("trained_per_part") or {}
    for row in parts_of(config, parameters.get("per_part") or {}):
        origin = loaded.get(row.label) or {}
        options = ", ".join(f"{name} {public(value)}" for name, value in row.options)
        yield CardPart(row, options, public(origin.get("origin", "")), origin.get("sha256", ""), trained.get(row.label))


def _data(data: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Spec of each source, what it was for, and its share."""
    specs, weights = data.get("data") or (), data.get("weights") or ()
    total = sum(weights)
    shares = [f"{weight / total:.1%}" for weight in weights] if total else ["every sample once per epoch"] * len(specs)
    return [
        *((public(spec), "training", share) for spec, share in zip(specs, shares, strict=False)),
        *((public(spec), "evaluation", MISSING) for spec in data.get("eval_data") or ()),
    ]


def _hub_ids(named: Iterable[str]) -> list[str] | None:
    """Those that name something on the hub, and no file or folder here."""
    matches = (HUB_ID.fullmatch(name) for name in named)
    found = dict.fromkeys(match[1] for match in matches if match and not Path(match[1]).exists())
    return list(found) or None


def _results(rows: Iterable[ScoreRow]) -> Iterator[EvalResult]:
    """Figures of whole datasets, each with the one that is reached without looking."""
    for row in rows:
        name, figure = public(row.dataset), row.figure
        for title, value in ((figure.title, row.value), (f"{figure.title}, images blanked", row.blind)):
            if value is not None and not row.tag:
                yield EvalResult(TASK, name, name, figure.name, value, metric_name=f"{title} ({row.items} items)")
