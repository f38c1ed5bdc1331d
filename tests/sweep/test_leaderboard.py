"""The leaderboard's three files hold what the standings say, and escape what comes from data."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from beni.sweep.cells import Cell
from beni.sweep.leaderboard import (
    EXAMPLES,
    Failure,
    Progress,
    Said,
    Trial,
    judged_samples,
    markdown,
    table,
    write_leaderboard,
)
from beni.sweep.standings import Standings, stand
from tests.sweep.runs import answered, captioned, cell, ran

PROGRESS = Progress(
    command="beni sweep --connector mlp perceiver",
    runs=5,
    ended=3,
    jobs=2,
    machine={"CPU": "x"},
    failed=[Failure("sva", [0, 1], "it <b>cannot</b>")],
    trials=[Trial("mlp", 1e-3, 0.25, 2, True), Trial("mlp", 1e-4, None, 0, False)],
)


def made(folder: Path) -> Standings:
    ids = [sample.id for sample in judged_samples(cell().config)]
    items = len(ids)
    many, few = np.arange(items) < items - 3, np.arange(items) >= items // 2
    runs = [ran(many, seed=n, folder=folder / f"runs/p/seed-{n}") for n in (0, 1)]
    runs.append(ran(few, flops=5e5, folder=folder / "runs/m/seed-0"))
    runs = [replace(r, answers=[replace(a, id=n) for a, n in zip(r.answers, ids, strict=True)]) for r in runs]
    return stand(
        [
            (cell("perceiver", varied={"connector": "perceiver", "rows": "2"}), 1e-3, runs[:2]),
            (cell("mlp"), 2e-4, runs[2:]),
        ]
    )


def test_a_page_of_everything(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, made(tmp_path), PROGRESS)
    page = (tmp_path / "leaderboard.html").read_text()
    assert (
        "perceiver × rows 2 is first, by too few seeds to say that it leads<" in page
        and 'href="runs/p/seed-1/report.html"' in page
    )
    assert "3 of 5 runs have ended, 2 at a time; 2 without a result" in page
    assert page.count('<article class="panel card">') == EXAMPLES + 3, "three that the second answers better"
    assert "data:image/png;base64," in page and "type=<wbr>even" in page and "Quality against cost" in page
    assert "it &lt;b&gt;cannot&lt;/b&gt;" in page and "<b>cannot" not in page and "&lt;no&gt;" in page
    assert '<td class="n">0.001</td><td class="n">0.25</td><td class="n">2</td><td>chosen</td>' in page
    assert "<dt><span" in page and "right with 2 of 2 seeds" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "leaderboard.html", "leaderboard.md"]


def test_speeds_that_differ_from_seed_to_seed_are_told(tmp_path: Path) -> None:
    runs = [ran([True] * 8, seed=n, samples_per_s=speed) for n, speed in enumerate((332, 1475, 904))]
    noisy, calm = stand([(cell(), 1e-3, runs)]), stand([(cell(), 1e-3, [runs[0], replace(runs[0], seed=1)])])
    assert "something disturbed some of them: mlp 332 to 1,475." in markdown(noisy, PROGRESS)
    assert "disturbed" not in markdown(calm, PROGRESS)


def test_what_is_the_same_for_all_and_what_a_cache_spares_is_told(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, made(tmp_path), PROGRESS)
    page = (tmp_path / "leaderboard.html").read_text()
    assert "The same for all: steps 10. " in page, "rates and seeds differ, and have columns"
    assert "behind the feature cache" not in page
    config = replace(cell().config, run=replace(cell().config.run, feature_cache="somewhere"))
    cached = ran([True] * 8, folder=tmp_path / "runs/x")
    write_leaderboard(tmp_path, stand([(Cell({}, config), 1e-3, [cached])]), PROGRESS)
    assert "behind the feature cache" in (tmp_path / "leaderboard.html").read_text()


def test_answers_of_seeds_that_differ_are_all_shown() -> None:
    right, wrong = answered([True, False])
    both = Said.of([wrong, right, right])
    assert (both.text, both.colour, both.gets) == ("yes 2×, <no> 1×", "", 2)
    assert Said.of([right, right]).colour == "right" and Said.of([wrong]).colour == "wrongly"


def compared(folder: Path, seeds: dict[str, int]) -> str:
    """The page of two that are alike, and of one that is clearly worse, each with so many seeds."""
    reached = {
        "mlp": np.arange(400) % 4 > 0,
        "concat": (np.arange(400) % 4 < 3) & (np.arange(400) > 3),
        "perceiver": np.arange(400) % 4 < 1,
    }
    runs = [
        (cell(name), 1e-3, [ran(reached[name], seed=n, folder=folder / f"runs/{name}/{n}") for n in range(count)])
        for name, count in seeds.items()
    ]
    write_leaderboard(folder, stand(runs), PROGRESS)
    return (folder / "leaderboard.html").read_text()


def bold(page: str) -> list[str]:
    """What rows of the leaderboard are bold, and what cells of the kinds."""
    return re.findall(r'<tr class="leading">.*?<td class="name">(\w+)', page, re.S) + re.findall(
        r'<td class="n leading">([\d.]+)', page
    )


def test_bold_is_the_first_and_what_is_not_clearly_behind_it(tmp_path: Path) -> None:
    page = compared(tmp_path, {"mlp": 3, "concat": 3, "perceiver": 3})
    assert "mlp leads" in page and "not clearly ahead of concat:" in page, "and the perceiver is not named"
    assert bold(page) == ["mlp", "concat", "99.0", "100.0"], "of even items the one, of odd ones the other"
    assert "Fewer than" not in page
    page = compared(tmp_path, {"mlp": 3, "perceiver": 3})
    assert "mlp leads" in page and "not clearly ahead" not in page
    page = compared(tmp_path, {"mlp": 3, "concat": 3})
    assert "mlp is first<" in page and bold(page) == ["99.0", "100.0"], "of all items nobody is behind"


def test_without_three_seeds_nothing_is_bold_and_the_page_says_why_once(tmp_path: Path) -> None:
    page = compared(tmp_path, {"mlp": 2, "concat": 1, "perceiver": 2})
    assert "mlp is first, by too few seeds" in page and not bold(page) and 'class="n clear"' not in page
    assert "not clearly ahead" not in page and page.count("Fewer than 3 seeds: intervals cannot tell") == 1
    assert (tmp_path / "leaderboard.md").read_text().count("Fewer than 3 seeds: ") == 1
    page = compared(tmp_path, {"mlp": 3, "concat": 2, "perceiver": 3})
    assert "mlp leads" in page and "Fewer than 3 seeds of concat: " in page and "ahead of concat" not in page
    assert bold(page)[0] == "mlp" and "concat" not in bold(page)


def test_kinds_have_their_number_of_items_and_what_is_reached_blind(tmp_path: Path) -> None:
    run = ran(np.arange(2005) % 4 > 0, folder=tmp_path / "runs/a")
    guessed = [replace(answer, blind_score=float(n % 8 == 0)) for n, answer in enumerate(run.answers)]
    write_leaderboard(tmp_path, stand([(cell(), 1.0, [replace(run, answers=guessed)])]), PROGRESS)
    page = (tmp_path / "leaderboard.html").read_text()
    assert 'type=<wbr>even<small>1,003 items</small></td><td class="n">50.0 %<small>blind 25.0</small>' in page
    assert 'type=<wbr>odd<small>1,002 items</small></td><td class="n">100.0 %<small>blind 0.0</small>' in page


def test_rows_with_captions_alone_are_not_ranked_with_the_rest(tmp_path: Path) -> None:
    rows = [
        (cell("mlp"), 1.0, [ran([], folder=tmp_path / "runs/a")]),
        (cell("concat"), 1.0, [captioned([0.5] * 8, folder=tmp_path / "runs/b")]),
        (cell("sva"), 1.0, [captioned([3.0] * 8, folder=tmp_path / "runs/c")]),
        (cell("perceiver"), 1.0, [ran([True] * 8, folder=tmp_path / "runs/d")]),
    ]
    standings = stand(rows)
    assert [row.cell.name for row in standings.rows] == ["perceiver", "sva", "concat", "mlp"], "by their own figure"
    write_leaderboard(tmp_path, standings, PROGRESS)
    told = "Not ranked, for lack of accuracy: sva (CIDEr-D), concat (CIDEr-D), mlp (nothing was judged)."
    page, text = (tmp_path / "leaderboard.html").read_text(), (tmp_path / "leaderboard.md").read_text()
    assert told in page and told in text and page.count('<span class="place">–</span>') == 3
    assert "| – | sva | – |" in text and "| 1* | perceiver |" in text
    assert [row["place"] for row in csv.DictReader(io.StringIO(table(standings)))] == ["1", "", "", ""]
    write_leaderboard(tmp_path, stand([rows[0]] * 2), PROGRESS)
    assert "mlp was not judged" in (tmp_path / "leaderboard.html").read_text()


def test_who_is_not_shown_to_look_is_named_everywhere(tmp_path: Path) -> None:
    guesses = ran(np.arange(40) % 4 > 0, folder=tmp_path / "runs/a")
    guesses = replace(guesses, answers=[replace(answer, blind_score=answer.score) for answer in guesses.answers])
    half = ran([True] * 20 + [False] * 20, folder=tmp_path / "runs/b")
    standings = stand([(cell("mlp"), 1.0, [guesses]), (cell("sva"), 1.0, [half])])
    write_leaderboard(tmp_path, standings, PROGRESS)
    page = (tmp_path / "leaderboard.html").read_text()
    assert "mlp is first, and is not shown to look" in page and page.count("not shown to look</small>") == 1
    assert "so not shown to look: mlp." in (tmp_path / "leaderboard.md").read_text()


def test_no_examples_where_the_data_has_changed(tmp_path: Path) -> None:
    """An answer is never shown beside another item."""
    standings = made(tmp_path)
    changed = replace(standings.rows[0].runs[0], answers=standings.rows[0].runs[0].answers[::-1])
    rows = [replace(standings.rows[0], runs=[changed]), standings.rows[1]]
    write_leaderboard(tmp_path, Standings(rows, standings.differences), PROGRESS)
    assert "Where the first two differ" not in (tmp_path / "leaderboard.html").read_text()


def test_of_one_cell_and_of_none(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, stand([(cell(), 1e-3, [ran([True, False], folder=tmp_path / "runs/x")])]), PROGRESS)
    page = (tmp_path / "leaderboard.html").read_text()
    assert "Where the first two differ" not in page and "Quality against cost" not in page and "50.0 %" in page
    write_leaderboard(tmp_path, stand([]), replace(PROGRESS, failed=(), trials=()))
    assert "Nothing has ended yet" in (tmp_path / "leaderboard.html").read_text()


def test_numbers_for_other_programs(tmp_path: Path) -> None:
    standings = made(tmp_path)
    first, second = csv.DictReader(io.StringIO(table(standings)))
    assert (first["--connector"], first["--rows"], second["--rows"]) == ("perceiver", "2", "")
    assert float(first["accuracy"]) == standings.rows[0].quality and float(first["low"]) <= float(first["accuracy"])
    assert (first["seeds"], second["lr"], second["front"], first["flops_per_sample"]) == (
        "2",
        "0.0002",
        "1",
        "1000000.0",
    )


def test_a_table_to_paste(tmp_path: Path) -> None:
    lines = markdown(made(tmp_path), PROGRESS).splitlines()
    heading = next(line for line in lines if line.startswith("| | combination"))
    rows = [line for line in lines if line.startswith(("| 1", "| 2"))]
    assert [row.count("|") for row in rows] == [heading.count("|")] * 2
    assert (
        rows[0].startswith("| 1* | perceiver × rows 2 | ") and "- no result: sva, seeds 0, 1: it <b>cannot</b>" in lines
    )


def test_of_captions_nothing_is_called_an_accuracy(tmp_path: Path) -> None:
    runs = [captioned([n + 0.1, n + 0.9, 0.2], folder=tmp_path / f"runs/{n}", flops=n + 1.0) for n in (1, 0)]
    standings = stand([(cell("mlp"), 1e-3, runs[:1]), (cell("sva"), 1e-3, runs[1:])])
    write_leaderboard(tmp_path, standings, PROGRESS)
    page, text = (tmp_path / "leaderboard.html").read_text(), (tmp_path / "leaderboard.md").read_text()
    assert '<th class="n">CIDEr-D</th>' in page and ">106.7<small>" in page and '<td class="n">25.0</td>' in page
    assert "no accuracies" in page and "0 – 100 %" not in page and 'class="wrongly"' not in page
    assert page.lower().count("accurac") == page.count("are no accuracies")
    assert "| CIDEr-D | 95 % interval | behind | blind | BLEU-4 |" in text and "no accuracies" in text
    [first, _] = csv.DictReader(io.StringIO(table(standings)))
    assert float(first["cider"]) == standings.rows[0].quality and first["bleu4"] == "0.25" and "accuracy" not in first
