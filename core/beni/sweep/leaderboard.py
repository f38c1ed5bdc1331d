"""`leaderboard.html`, `leaderboard.md` and `leaderboard.csv`: what a sweep has found out so far."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beni.config import RunConfig
from beni.data.spec import judged
from beni.errors import BeniError
from beni.eval.answers import Answer
from beni.eval.figure import FIGURES, Figure
from beni.eval.judge import subset
from beni.eval.metrics import figure_of
from beni.report.figures import MISSING, bounds, decimal, hundredfold, operations, quantity, size, whole
from beni.report.pictures import Picture, drawn
from beni.report.render import write_page
from beni.report.scatter import Spot, make_scatter
from beni.sample import Sample
from beni.sweep.kinds import by_kind
from beni.sweep.standings import LEAST_SEEDS, Standing, Standings

EXAMPLES = 6
"""Items shown that one of two combinations answers better, and as many for the other."""


UNSTEADY = 1.5
"""Seeds train equally fast; where one is so many times as fast as another, something disturbed them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A learning rate that was tried for a cell."""

    name: str
    lr: float
    val_loss: float | None
    """Mean over seeds, if any has a loss that is a number."""
    seeds: int
    """That have one."""
    chosen: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """Runs of a cell without a result."""

    name: str
    seeds: Sequence[int]
    why: str

    @property
    def shown(self) -> str:
        return f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sweep is, beside its standings."""

    command: str
    """What to type to repeat it."""
    runs: int
    """Of the whole sweep, as far as they are known, and how many have ended."""
    ended: int
    jobs: int
    """Runs at a time."""
    machine: Mapping[str, object]
    failed: Sequence[Failure] = ()
    trials: Sequence[Trial] = ()


Columns = Mapping[str, Callable[[Standing], str]]
"""Cells of a table by their headings."""


def quality_columns(figure: Figure) -> Columns:
    """What was reached."""
    return {
        figure.title: lambda row: hundredfold(row.quality, figure.unit),
        "95 % interval": lambda row: bounds(row.interval),
        "behind": lambda row: _points(row.behind, row.behind_interval),
        "blind": lambda row: hundredfold(row.blind, figure.unit),
    }


def columns_beside(standings: Standings) -> dict[str, str]:
    """Titles of the figures that are told beside the one that is compared, by their keys in a result."""
    every = {each.name: each.title for figure in FIGURES for each in figure.all}
    every.pop(standings.figure.name)
    return {name: title for name, title in every.items() if any(row.mean(name) is not None for row in standings.rows)}


COSTS: dict[str, Callable[[Standing], str]] = {
    "FLOPs/sample": lambda row: operations(row.cost("flops_per_sample")),
    "samples/s": lambda row: whole(row.cost("samples_per_s")),
    "memory": lambda row: size(row.cost("peak_memory_bytes")),
    "parameters": lambda row: quantity(row.parameters),
    "trained": lambda row: quantity(row.trained),
    "tokens/image": lambda row: whole(row.cost("visual_tokens_per_image")),
    "steps": lambda row: whole(row.cost("steps")),
    "lr": lambda row: f"{row.lr:g}",
    "seeds": lambda row: str(len(row.runs)),
}
"""And what it took."""
CAPTIONS = "CIDEr-D and BLEU-4 compare captions with those of people; they are given times 100, and are no accuracies."
SELDOM = ("steps", "lr", "seeds")
"""Columns that a page leaves out where they say the same of all."""


def write_leaderboard(folder: Path, standings: Standings, progress: Progress) -> None:
    """Write all three files; the folder exists."""
    for name, text in (("leaderboard.md", markdown(standings, progress)), ("leaderboard.csv", table(standings))):
        draft = folder / f".{name}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / name)
    rows = standings.rows
    values = {
        "rows": rows,
        "ranked": standings.ranked,
        "unranked": unranked(standings),
        "few_seeds": few_seeds(standings),
        "figure": standings.figure,
        "columns": quality_columns(standings.figure),
        "beside": columns_beside(standings),
        "captions": CAPTIONS,
        "costs": {heading: column for heading, column in COSTS.items() if heading not in SELDOM or _vary(rows, column)},
        "alike": _alike(rows),
        "unsteady": unsteady(rows),
        "cached": any(row.cell.config.run.feature_cache for row in rows),
        "progress": progress,
        "links": [[(run.seed, run.folder.relative_to(folder).as_posix()) for run in row.runs] for row in rows],
        "scatter": make_scatter(_spots(rows), standings.figure),
        "as_good": [
            rows[n].cell.name
            for (one, n), found in standings.differences.items()
            if one == 0 and found.carried and not found.clear
        ],
        "unseeing": [row.cell.name for row in rows if not row.looks],
        "compared": sorted({one for one, _ in standings.differences}),
        "differences": standings.differences,
        "kinds": by_kind(standings.ranked),
        "pair": rows[:2] if (0, 1) in standings.differences else (),
        "examples": _examples(rows[0], rows[1], standings.figure) if (0, 1) in standings.differences else (),
        "seeds": standings.seeds,
    }
    write_page(folder / "leaderboard.html", "leaderboard.html.jinja", values)


def few_seeds(standings: Standings) -> str:
    """A line that says where intervals cannot tell what other seeds would have given; empty if they all can."""
    few = [row.cell.name for row in standings.ranked if len(row.runs) < LEAST_SEEDS]
    if not few:
        return ""
    whose, here = ("", "here") if len(few) == len(standings.ranked) else (f" of {', '.join(few)}", "there")
    return (
        f"Fewer than {LEAST_SEEDS} seeds{whose}: intervals cannot tell what others would have given, so no difference "
        f"{here} is called clear."
    )


def unranked(standings: Standings) -> str:
    """A line that says which rows are not ranked with the rest, and why; empty if there are none."""
    told = []
    for row in standings.rows:
        if row.quality is None:
            others = [each.title for each in FIGURES if row.mean(each.name) is not None]
            told.append(f"{row.cell.name} ({' and '.join(others) or 'nothing was judged'})")
    return f"Not ranked, for lack of {standings.figure.title}: {', '.join(told)}." if told else ""


def unsteady(rows: Sequence[Standing]) -> str:
    """A line that says whose speeds tell nothing, because they differ from seed to seed; empty if nobody's."""
    spread = {}
    for row in rows:
        speeds = [speed for run in row.runs if (speed := run.result.get("samples_per_s"))]
        if speeds and max(speeds) > UNSTEADY * min(speeds):
            spread[row.cell.name] = f"{decimal(min(speeds))} to {decimal(max(speeds))}"
    told = ", ".join(f"{name} {speeds}" for name, speeds in spread.items())
    return f"Samples/s differ between seeds, so something disturbed some of them: {told}." if told else ""


def _place(place: int, row: Standing, missing: str = "") -> str:
    """Rows are numbered from 1 on, as far as they are ranked."""
    return str(place) if row.quality is not None else missing


def markdown(standings: Standings, progress: Progress) -> str:
    """The table, and what it stands on."""
    figure, beside = standings.figure, columns_beside(standings)
    costs = COSTS.values()
    headings = [*quality_columns(figure), *beside.values(), *COSTS]
    lines = [
        "# Leaderboard",
        "",
        "| | combination | " + " | ".join(headings) + " |",
        "|---" * (len(headings) + 2) + "|",
    ]
    rows = standings.rows
    for place, row in enumerate(rows, start=1):
        cells = [column(row) for column in quality_columns(figure).values()]
        cells += [hundredfold(row.mean(name)) for name in beside] + [column(row) for column in costs]
        mark = _place(place, row, MISSING) + "*" * row.front
        lines.append(f"| {mark} | " + " | ".join(map(_escaped, [row.cell.name, *cells])) + " |")
    for told in filter(None, (few_seeds(standings), unranked(standings), unsteady(rows))):
        lines += ["", told]
    lines += ["", f"{progress.ended} of {progress.runs} runs, {progress.jobs} at a time. `{progress.command}`", ""]
    lines += [
        "\\* on the front: nothing here is as good for as few operations. Intervals (95 %) are over seeds and "
        "items, by a bootstrap that draws items about the same images together; differences to the first are paired by "
        "item. Blind: the images blanked. Of speeds and memory the median over seeds."
    ]
    if beside or not figure.share:
        lines += [CAPTIONS]
    if unseeing := [row.cell.name for row in standings.rows if not row.looks]:
        lines += [f"Not clearly better than with the images blanked, so not shown to look: {', '.join(unseeing)}."]
    lines += [f"- no result: {each.name}, {each.shown}: {each.why}" for each in progress.failed]
    return "\n".join(lines) + "\n"


def table(standings: Standings) -> str:
    """Plain numbers for other programs, as CSV."""
    options = list(dict.fromkeys(option for row in standings.rows for option in row.cell.varied))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figure, beside = standings.figure, columns_beside(standings)
    figures = ("flops_per_sample", "samples_per_s", "peak_memory_bytes", "visual_tokens_per_image", "steps", "train_s")
    writer.writerow(
        [
            *(
                "place",
                "name",
                *(f"--{option}" for option in options),
                figure.name,
                "low",
                "high",
                "behind",
                "behind_low",
                "behind_high",
                "blind",
                "added",
                "added_low",
                "added_high",
                *beside,
            ),
            *(*figures, "parameters", "trained", "lr", "seeds", f"{figure.name}_by_seed", "front"),
        ]
    )
    for place, row in enumerate(standings.rows, start=1):
        writer.writerow(
            [
                *(_place(place, row), row.cell.name, *(row.cell.varied.get(option, "") for option in options)),
                *(row.quality, *(row.interval or ("", "")), row.behind, *(row.behind_interval or ("", "")), row.blind),
                *((row.added.more, *row.added.interval) if row.added else ("", "", "")),
                *(row.mean(name) for name in beside),
                *(row.cost(name) for name in figures),
                *(row.parameters, row.trained, row.lr, len(row.runs)),
                " ".join(str(run.result.get(figure.name)) for run in row.runs),
                int(row.front),
            ]
        )
    return out.getvalue()


def _vary(rows: Sequence[Standing], column: Callable[[Standing], str]) -> bool:
    return len({column(row) for row in rows}) > 1


def _alike(rows: Sequence[Standing]) -> str:
    """A sentence with the figures whose columns a page leaves out."""
    told = [f"{heading} {COSTS[heading](rows[0])}" for heading in SELDOM if rows and not _vary(rows, COSTS[heading])]
    return f"The same for all: {', '.join(told)}. " if told else ""


def _spots(rows: Sequence[Standing]) -> list[Spot]:
    spots = []
    for place, row in enumerate(rows, start=1):
        cost = row.cost("flops_per_sample")
        if cost is not None and row.quality is not None and row.interval is not None:
            spots.append(Spot(place, row.cell.name, cost, row.quality, *row.interval, row.front))
    return spots


@dataclass(frozen=True, slots=True)
class Said:
    """What the seeds of a combination answer to an item."""

    text: str
    """The different answers, the most frequent one first, each with how often it was given."""
    colour: str
    """Class of the text: whether all seeds are right, none, or some."""
    gets: float
    """All seeds together; of exact matches, how many of `seeds` are right."""
    seeds: int

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Said":
        said = Counter(answer.prediction.strip() or MISSING for answer in answers)
        right = {answer.score >= 0.5 for answer in answers}
        colour = "" if len(right) > 1 else "right" if right == {True} else "wrongly"
        texts = ", ".join(f"{text} {times}×" if len(said) > 1 else text for text, times in said.most_common())
        return cls(texts, colour, sum(answer.score for answer in answers), len(answers))


@dataclass(frozen=True, slots=True)
class Example:
    """An item that one of two combinations answers better than the other."""

    sample: Sample
    pictures: Sequence[Picture | str]
    answers: Sequence[Said]
    """Of either."""


def _examples(first: Standing, second: Standing, figure: Figure) -> list[Example]:
    """Items on which two combinations differ most, alternately for one and the other; a seeded choice among equals."""
    shares = [np.mean([[a.score for a in run.answers] for run in row.runs], axis=0) for row in (first, second)]
    more = shares[0] - shares[1]
    order = np.random.default_rng(0).permutation(len(more))
    for_first = [n for n in order[np.argsort(-more[order], kind="stable")] if more[n] > 0][:EXAMPLES]
    for_second = [n for n in order[np.argsort(more[order], kind="stable")] if more[n] < 0][:EXAMPLES]
    try:
        samples = [each for each in judged_samples(first.cell.config) if figure_of(each.metric) is figure]
    except BeniError:  # gone since the runs were judged
        return []
    if [sample.id for sample in samples] != [answer.id for answer in first.runs[0].answers]:
        return []
    found = []
    for n in [*for_first, *for_second]:
        sample = samples[int(n)]
        said = [Said.of([run.answers[n] for run in row.runs]) for row in (first, second)]
        found.append(Example(sample, [drawn(ref) for ref in sample.images], said))
    return found


def judged_samples(config: RunConfig) -> list[Sample]:
    """The items that a run is judged on, in the order of its answers."""
    chosen = judged(config.data.eval_data, config.data.data)
    return [sample for samples in chosen.values() for sample in subset(samples, config.data.eval_limit)]


def _points(behind: float | None, interval: tuple[float, float] | None) -> str:
    """A difference times 100."""
    if behind is None or interval is None:
        return MISSING
    return "0" if interval == (0.0, 0.0) else f"{hundredfold(behind)} ({bounds(interval)})"


def _escaped(text: str) -> str:
    """For a cell of a Markdown table."""
    return text.replace("|", "\\|")
