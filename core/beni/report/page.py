"""`report.html`: what a run did, measured and answered, in one file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beni.eval.figure import ACCURACY, FIGURES, Beside, Figure
from beni.eval.metrics import figure_of
from beni.eval.prediction import Prediction
from beni.report.curves import Plot, make_plot
from beni.report.parts import parts_of
from beni.report.pictures import Picture, drawn
from beni.report.render import write_page
from beni.sample import Sample

MOST_PROBLEMS = 200
"""Left-out samples listed in the report; result.json has more."""


def write_report(
    path: Path,
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    shown: Sequence[tuple[Sample, Prediction]],
    config: Mapping[str, Any],
) -> None:
    """Write the report of a run: a page that needs nothing but itself.

    Args:
        path: the HTML file; its folder exists.
        result: what result.json holds; figures that are missing or None are shown as a dash.
        metrics: lines of metrics.jsonl.
        shown: items with their answers; wrong ones are put first.
        config: `RunConfig.to_dict()`.
    """
    parameters = result.get("parameters") or {}
    parts = parts_of(config, parameters.get("per_part") or {})
    cards = [_card(sample, prediction) for sample, prediction in shown]
    rows = score_rows(result.get("evaluations") or {})
    problems = [*(result.get("unusable") or ()), *(result.get("skipped") or ())]
    values = {
        "result": result,
        "parameters": parameters,
        "title": title_of(config),
        "parts": parts,
        "scores": _scores(result, rows),
        "rows": rows,
        "plots": _plots(metrics),
        "costs": _costs(result.get("flops_per_sample_by_part") or {}),
        "cards": sorted(cards, key=lambda card: card.prediction.score),
        "problems": problems[:MOST_PROBLEMS],
        "problem_count": (result.get("unusable_samples") or 0) + (result.get("skipped_samples") or 0) or len(problems),
        "config": json.dumps(config, indent=2, ensure_ascii=False),
    }
    write_page(path, "report.html.jinja", values)


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """What was reached on a dataset, or on the items of it that have a tag."""

    dataset: str
    tag: str
    """`name=value`, or empty for the whole dataset."""
    items: int
    unreadable: int
    figure: Figure
    """What `value` is: its accuracy, or what else the metric of the data gives."""
    value: float | None
    interval: Sequence[float] | None
    """Of 95 %."""
    blind: float | None
    beside: Sequence[tuple[str, float]]
    """Title and value of figures that are told beside it."""


def score_rows(evaluations: Mapping[str, Mapping[str, Any]]) -> list[ScoreRow]:
    """A row for each dataset of a result's `evaluations`, followed by those of its tags."""
    rows = []
    for name, seen in evaluations.items():
        blind = seen.get("blind") or {}
        blind_tags = blind.get("by_tag") or {}
        rows += _score_rows(name, "", seen, blind)
        for tag, of in (seen.get("by_tag") or {}).items():
            rows += _score_rows(name, tag, of, blind_tags.get(tag) or {})
    return rows


def _score_rows(dataset: str, tag: str, seen: Mapping[str, Any], blind: Mapping[str, Any]) -> list[ScoreRow]:
    """One for each figure that the items have."""
    return [
        ScoreRow(
            dataset=dataset,
            tag=tag,
            items=seen.get(figure.items_name, seen.get("items")) or 0,
            unreadable=seen.get("unreadable") or 0,
            figure=figure,
            value=seen.get(figure.name),
            interval=seen.get(figure.interval_name),
            blind=blind.get(figure.name),
            beside=[(each.title, seen[each.name]) for each in figure.beside if seen.get(each.name) is not None],
        )
        for figure in [each for each in FIGURES if seen.get(each.name) is not None] or [ACCURACY]
    ]


@dataclass(frozen=True, slots=True)
class Score:
    """A figure of all evaluations together."""

    figure: Figure | Beside
    unit: str
    seeing: float | None
    blind: float | None
    items: int


def _scores(result: Mapping[str, Any], rows: Sequence[ScoreRow]) -> list[Score]:
    """The accuracy, unless there are others only, and these."""
    known = [each for each in FIGURES if result.get(each.name) is not None] or [ACCURACY]
    found = []
    for figure in known:
        items = sum(row.items for row in rows if not row.tag and row.figure is figure)
        for each in figure.all:
            seeing, blind = result.get(each.name), result.get(f"{each.name}_blind")
            found.append(Score(each, figure.unit, seeing, blind, items))
    return found


@dataclass(frozen=True, slots=True)
class Cost:
    """What a part computes for a sample, in floating point operations."""

    part: str
    forward: float
    backward: float
    share: float
    """Of all parts."""


def _costs(by_part: Mapping[str, Mapping[str, float]]) -> list[Cost]:
    """The dearest part first."""
    everything = sum(sum(each.values()) for each in by_part.values())
    costs = [Cost(part, **each, share=sum(each.values()) / everything) for part, each in by_part.items()]
    return sorted(costs, key=lambda cost: cost.share, reverse=True)


def _plots(metrics: Sequence[Mapping[str, Any]]) -> list[Plot]:
    plots = [
        make_plot("Loss", "nats per target token", metrics, {"loss": "training", "val_loss": "validation"}),
        make_plot("Learning rate", "per step", metrics, {"lr": "learning rate"}, from_zero=True),
        make_plot("Gradient norm", "before clipping", metrics, {"grad_norm": "gradient norm"}),
        make_plot("Speed", "tokens per second", metrics, {"tokens_per_s": "tokens/s"}, from_zero=True),
    ]
    return [plot for plot in plots if plot is not None]


@dataclass(frozen=True, slots=True)
class Card:
    """One answered item."""

    sample: Sample
    prediction: Prediction
    pictures: tuple[Picture | str, ...]
    """Embedded pictures, or why there is none."""

    @property
    def figure(self) -> Figure:
        """What the score of the answer adds to."""
        return figure_of(self.prediction.metric)


def _card(sample: Sample, prediction: Prediction) -> Card:
    return Card(sample, prediction, tuple(map(drawn, sample.images)))


def title_of(config: Mapping[str, Any]) -> str:
    """Encoders × connector × fusion × LLM."""
    by_kind: dict[str, list[str]] = {}
    for part in parts_of(config, {}):
        by_kind.setdefault(part.kind, []).append(part.name)
    return " × ".join(
        " + ".join(by_kind[kind]) for kind in ("encoder", "connector", "fusion", "llm") if kind in by_kind
    )
