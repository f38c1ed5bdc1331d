"""`leaderboard.html`, `leaderboard.md` and `leaderboard.csv`: what a sweep has found out so far."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beni.config import RunConfig
from beni.data.spec import judged
from beni.errors import BeniError
from beni.eval.answers import Answer
from beni.eval.judge import subset
from beni.report.figures import operations, percent, quantity, size, whole
from beni.report.pictures import Picture, drawn
from beni.report.render import write_page
from beni.report.scatter import Spot, make_scatter
from beni.sample import Sample
from beni.sweep.standings import Standing, Standings

EXAMPLES = 6
"""Items shown that one of two combinations answers better, and as many for the other."""
MOST_TAGS = 40
"""Kinds of items shown, the most frequent ones."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A learning rate that was tried for a cell."""

    name: str
    lr: float
    val_loss: float | None
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


QUALITY: dict[str, Callable[[Standing], str]] = {
    "accuracy": lambda row: percent(row.accuracy),
    "95 % interval": lambda row: _interval(row.interval),
    "behind": lambda row: _points(row.behind, row.behind_interval),
    "blind": lambda row: percent(row.blind),
}
"""Columns of the table behind the name: what was reached."""
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
SELDOM = ("steps", "lr", "seeds")
"""Columns that a page leaves out where they say the same of all."""
COLUMNS = QUALITY | COSTS


def write_leaderboard(folder: Path, standings: Standings, progress: Progress) -> None:
    """Write all three files; the folder exists."""
    for name, text in (("leaderboard.md", markdown(standings, progress)), ("leaderboard.csv", table(standings))):
        draft = folder / f".{name}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / name)
    rows = standings.rows
    by_tag = [row.by_tag() for row in rows]
    tags = list(dict.fromkeys(tag for tags in by_tag for tag in tags))[:MOST_TAGS]
    values = {
        "rows": rows,
        "columns": QUALITY,
        "costs": {heading: column for heading, column in COSTS.items() if heading not in SELDOM or _vary(rows, column)},
        "progress": progress,
        "links": [[(run.seed, run.folder.relative_to(folder).as_posix()) for run in row.runs] for row in rows],
        "scatter": make_scatter(_spots(rows)),
        "compared": sorted({one for one, _ in standings.differences}),
        "differences": standings.differences,
        "tags": [(tag, [tags.get(tag) for tags in by_tag]) for tag in tags],
        "pair": rows[:2] if (0, 1) in standings.differences else (),
        "examples": _examples(rows[0], rows[1]) if (0, 1) in standings.differences else (),
        "seeds": standings.seeds,
    }
    write_page(folder / "leaderboard.html", "leaderboard.html.jinja", values)


def markdown(standings: Standings, progress: Progress) -> str:
    """The table, and what it stands on."""
    lines = ["# Leaderboard", "", "| | combination | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for place, row in enumerate(standings.rows, start=1):
        cells = [column(row) for column in COLUMNS.values()]
        lines.append(
            f"| {place}{'*' if row.front else ''} | " + " | ".join(map(_escaped, [row.cell.name, *cells])) + " |"
        )
    lines += ["", f"{progress.ended} of {progress.runs} runs, {progress.jobs} at a time. `{progress.command}`", ""]
    lines += [
        "\\* on the front: nothing here is as accurate for as few operations. Intervals (95 %) are over seeds and "
        "items, by a bootstrap that draws items about the same images together; differences to the first are paired by "
        "item. Blind: the images blanked. Of speeds and memory the median over seeds."
    ]
    lines += [f"- no result: {each.name}, {each.shown}: {each.why}" for each in progress.failed]
    return "\n".join(lines) + "\n"


def table(standings: Standings) -> str:
    """Plain numbers for other programs, as CSV."""
    options = list(dict.fromkeys(option for row in standings.rows for option in row.cell.varied))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = ("flops_per_sample", "samples_per_s", "peak_memory_bytes", "visual_tokens_per_image", "steps", "train_s")
    writer.writerow(
        [
            *(
                "place",
                "name",
                *(f"--{option}" for option in options),
                "accuracy",
                "low",
                "high",
                "behind",
                "behind_low",
                "behind_high",
                "blind",
            ),
            *(*figures, "parameters", "trained", "lr", "seeds", "accuracies", "front"),
        ]
    )
    for place, row in enumerate(standings.rows, start=1):
        writer.writerow(
            [
                *(place, row.cell.name, *(row.cell.varied.get(option, "") for option in options)),
                *(row.accuracy, *(row.interval or ("", "")), row.behind, *(row.behind_interval or ("", "")), row.blind),
                *(row.cost(figure) for figure in figures),
                *(row.parameters, row.trained, row.lr, len(row.runs)),
                " ".join(str(run.result["accuracy"]) for run in row.runs),
                int(row.front),
            ]
        )
    return out.getvalue()


def _vary(rows: Sequence[Standing], column: Callable[[Standing], str]) -> bool:
    return len({column(row) for row in rows}) > 1


def _spots(rows: Sequence[Standing]) -> list[Spot]:
    spots = []
    for place, row in enumerate(rows, start=1):
        cost = row.cost("flops_per_sample")
        if cost is not None and row.accuracy is not None and row.interval is not None:
            spots.append(Spot(place, row.cell.name, cost, row.accuracy, *row.interval, row.front))
    return spots


@dataclass(frozen=True, slots=True)
class Said:
    """What the seeds of a combination answer to an item."""

    text: str
    """The most frequent answer."""
    correct: bool
    right: float
    """The credit of all seeds together; of exact matches, how many of `seeds` are right."""
    seeds: int

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Said":
        said = [answer.prediction for answer in answers]
        usual = max(answers, key=lambda answer: said.count(answer.prediction))
        return cls(usual.prediction, usual.score >= 0.5, sum(answer.score for answer in answers), len(answers))


@dataclass(frozen=True, slots=True)
class Example:
    """An item that one of two combinations answers better than the other."""

    sample: Sample
    pictures: Sequence[Picture | str]
    answers: Sequence[Said]
    """Of either."""


def _examples(first: Standing, second: Standing) -> list[Example]:
    """Items on which two combinations differ most, alternately for one and the other; a seeded choice among equals."""
    shares = [np.mean([[a.score for a in run.answers] for run in row.runs], axis=0) for row in (first, second)]
    more = shares[0] - shares[1]
    order = np.random.default_rng(0).permutation(len(more))
    for_first = [n for n in order[np.argsort(-more[order], kind="stable")] if more[n] > 0][:EXAMPLES]
    for_second = [n for n in order[np.argsort(more[order], kind="stable")] if more[n] < 0][:EXAMPLES]
    try:
        samples = judged_samples(first.cell.config)
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


def _interval(bounds: tuple[float, float] | None) -> str:
    return "–" if bounds is None else f"{100 * bounds[0]:.1f} – {100 * bounds[1]:.1f}"


def _points(behind: float | None, bounds: tuple[float, float] | None) -> str:
    """A difference in points of a per cent."""
    if behind is None or bounds is None:
        return "–"
    return "0" if bounds == (0.0, 0.0) else f"{100 * behind:.1f} ({100 * bounds[0]:.1f} – {100 * bounds[1]:.1f})"


def _escaped(text: str) -> str:
    """For a cell of a Markdown table."""
    return text.replace("|", "\\|")
