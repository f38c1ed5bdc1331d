"""`report.json`, `report.md` and `report.html` of a comparison of costs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beni.bench.scaling import Curve
from beni.report.curves import Plot, make_plot
from beni.report.figures import operations, percent, quantity, size, whole
from beni.report.render import write_page
from beni.training.outputs import write_json

PARTS = ("encoder", "connector", "fusion", "llm", "view")
COLUMNS = {
    "samples/s": lambda row: f"{row['samples_per_s']:,.4g} ({_spread(row)})",
    "images/s": lambda row: f"{row['images_per_s']:,.4g}",
    "positions/s": lambda row: whole(row["positions_per_s"]),
    "per sample": lambda row: f"{operations(row['flops_per_sample'])}FLOPs",
    "per second": lambda row: f"{operations(row['flops_per_s'])}FLOPs",
    "MFU": lambda row: percent(row["mfu"]),
    "MFU causal": lambda row: percent(row["mfu_causal"]),
    "HFU": lambda row: percent(row["hfu"]),
    "memory": lambda row: size(row["peak_memory_bytes"]),
    "tokens/image": lambda row: whole(row["visual_tokens_per_image"]),
    "parameters": lambda row: quantity(row["parameters"]),
    "trained": lambda row: quantity(row["trainable_parameters"]),
    "bound by": lambda row: row["regime"] or "–",
}
"""Of the table, behind the parts."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A combination that could not be measured."""

    parts: str
    reason: str


def varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The kinds of parts in which rows differ; connector and fusion, if in none."""
    found = [kind for kind in PARTS if len({row[kind] for row in rows}) > 1]
    return found or ["connector", "fusion"]


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells of each row."""
    kinds = varying(rows)
    return [*kinds, *COLUMNS], [[*(row[kind] for kind in kinds), *(c(row) for c in COLUMNS.values())] for row in rows]


def terminal(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, one block per combination where it is wider than lines are."""
    headings, cells = table(rows)
    kinds = len(varying(rows))
    blocks = []
    for line, row in zip(cells, rows, strict=True):
        name = " × ".join(line[:kinds])
        figures = [f"  {heading:<13} {cell}" for heading, cell in zip(headings[kinds:], line[kinds:], strict=True)]
        split = ", ".join(f"{part} {share:.0%}" for part, share in row["step_split"].items())
        blocks.append("\n".join([name, *figures, f"  {'step':<13} {1000 * row['step_s']:,.4g} ms: {split}"]))
    return "\n\n".join(blocks)


def write_reports(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    refused: Sequence[Refused],
    machine: Mapping[str, Any],
    growth: Sequence[Curve] = (),
) -> None:
    """Write all three files; the folder exists.

    Args:
        folder: takes them.
        rows: what was measured, by combination.
        refused: combinations that were not.
        machine: what it ran on, by name.
        growth: how the time of the first combination grows.
    """
    named = [{"parts": each.parts, "reason": each.reason} for each in refused]
    grown = [{**asdict(curve), "exponent": curve.exponent, "off": curve.off} for curve in growth]
    write_json(folder / "report.json", {"rows": rows, "refused": named, "machine": machine, "scaling": grown})
    (folder / "report.md").write_text(markdown(rows, refused, machine, growth), encoding="utf-8")
    kinds = varying(rows)
    values = {
        "rows": rows,
        "names": [" × ".join(row[kind] for kind in kinds) for row in rows],
        "fixed": ", ".join(f"{kind} {rows[0][kind]}" for kind in PARTS if kind not in kinds) if rows else "",
        "table": table(rows),
        "kinds": len(kinds),
        "refused": refused,
        "machine": machine,
        "steps": _steps(rows),
        "flops": _flops(rows),
        "bars": [_bars(rows, "samples_per_s", "Samples per second"), _bars(rows, "mfu", "MFU, attention in full")],
        "growth": _plots(growth),
        "raw": json.dumps(rows, indent=2),
    }
    write_page(folder / "report.html", "throughput.html.jinja", values)


def markdown(
    rows: Sequence[Mapping[str, Any]],
    refused: Sequence[Refused],
    machine: Mapping[str, Any],
    growth: Sequence[Curve] = (),
) -> str:
    """The table, what bounds each combination, how its time grows, and what was refused."""
    headings, cells = table(rows)
    lines = ["# What it costs to train", "", _machine(machine), "", "| " + " | ".join(headings) + " |"]
    lines += ["|" + "---|" * len(headings), *("| " + " | ".join(line) + " |" for line in cells), ""]
    kinds = len(varying(rows))
    lines += [
        f"- {' × '.join(line[:kinds])}: {row['regime_why']}"
        for line, row in zip(cells, rows, strict=True)
        if row["regime_why"]
    ]
    lines += [f"- {told(curve)}" for curve in growth]
    lines += [f"- refused: {each.parts}: {each.reason}" for each in refused]
    return "\n".join(lines) + "\n"


def told(curve: Curve) -> str:
    """A curve in a sentence."""
    points = ", ".join(f"{point.amount}: {1000 * point.seconds:,.4g} ms" for point in curve.points)
    return (
        f"{curve.of}: the time of a step grows with exponent {curve.exponent:.2f}; a line through operations and times "
        f"is off by at most {curve.off:.0%} ({points})"
    )


def _plots(growth: Sequence[Curve]) -> list[tuple[Plot, str]]:
    """Times over amounts, and over amounts what the operations predict."""
    plots = []
    for curve in growth:
        predicted = curve.predicted
        lines = [
            {curve.of: point.amount, "measured": 1000 * point.seconds, "predicted": 1000 * seconds}
            for point, seconds in zip(curve.points, predicted, strict=True)
        ]
        keys = {"measured": "measured", "predicted": "by operations"}
        plot = make_plot(f"Time by {curve.of}", "ms per step", lines, keys, from_zero=True, along=curve.of)
        if plot is not None:
            plots.append((plot, f"exponent {curve.exponent:.2f}; operations predict the time within {curve.off:.0%}"))
    return plots


def _machine(machine: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def _spread(row: Mapping[str, Any]) -> str:
    low, high = row["samples_per_s_quartiles"]
    return f"{low:,.4g} – {high:,.4g}"


@dataclass(frozen=True, slots=True)
class Piece:
    """Of a bar: its name, its share of the drawing, and what it stands for."""

    name: str
    number: int
    """Chooses the colour."""
    width: float
    """Per cent of the drawing."""
    text: str


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars, one for each row, of pieces."""

    title: str
    unit: str
    legend: tuple[str, ...]
    rows: tuple[tuple[Piece, ...], ...]
    totals: tuple[str, ...]


def _steps(rows: Sequence[Mapping[str, Any]]) -> Bars:
    """Where the time of a step goes; communication happens within the passes and is no piece of its own."""
    names = tuple(dict.fromkeys(name for row in rows for name in row["step_split"] if name != "communication"))
    drawn = tuple(
        tuple(
            Piece(
                name, number, 100 * max(0.0, row["step_split"].get(name, 0.0)), f"{row['step_split'].get(name, 0):.1%}"
            )
            for number, name in enumerate(names)
        )
        for row in rows
    )
    totals = tuple(f"{1000 * row['step_s']:,.4g} ms" for row in rows)
    return Bars("Time of a step", "share of the step", names, drawn, totals)


def _flops(rows: Sequence[Mapping[str, Any]]) -> Bars:
    """Operations of a sample, by part and pass."""
    most = max((row["flops_per_sample"] for row in rows), default=1.0)
    by_part = [row["flops_per_sample_by_part"] for row in rows]
    names = tuple(dict.fromkeys(f"{part}, {which}" for parts in by_part for part in parts for which in parts[part]))
    drawn = tuple(
        tuple(
            Piece(name, number, 100 * count / most, operations(count))
            for number, name in enumerate(names)
            for part, _, which in [name.rpartition(", ")]
            if (count := parts.get(part, {}).get(which, 0.0))
        )
        for parts in by_part
    )
    return Bars(
        "Operations of a sample", "FLOPs", names, drawn, tuple(operations(row["flops_per_sample"]) for row in rows)
    )


def _bars(rows: Sequence[Mapping[str, Any]], key: str, title: str) -> Bars:
    """One figure, as a bar of one piece."""
    most = max((row[key] or 0.0 for row in rows), default=0.0) or 1.0
    shown = [percent(row[key]) if key == "mfu" else f"{row[key]:,.4g}" for row in rows]
    drawn = tuple(
        (Piece(title, 0, 100 * (row[key] or 0.0) / most, text),) for row, text in zip(rows, shown, strict=True)
    )
    return Bars(title, "", (), drawn, tuple(shown))
