"""`beni sweep` from the command line: it trains what is missing, and compares."""

import csv
import json
from pathlib import Path

import pytest

from beni.cli.main import run
from tests.cli.test_throughput import TINY

SMALL = f"{TINY} --llm.width 32 --llm.layers 1 --llm.heads 2 --data shapes?images=20 --workers 0 --rows 1"
RUN = f"{SMALL} --row-tokens 512 --device cpu --steps 2 --eval-limit 8"


def sweep(words: str, out: Path) -> None:
    run("sweep", [*words.split(), "--out", str(out)])


def test_learning_rates_are_chosen_and_more_seeds_are_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sweep(f"{RUN} --tune-lr 1e-3 1e-9 --jobs 2", out)
    results = sorted(out.glob("runs/*/seed-0/result.json"))
    losses = {path.parent.parent: json.loads(path.read_text())["val_loss"] for path in results}
    assert len(losses) == 2
    shown = capsys.readouterr().out
    assert "1 combinations, 1 seeds, 2 at a time" in shown and "lr 0.001, seed 0: accuracy " in shown
    written = {path: path.stat().st_mtime_ns for path in results}

    sweep(f"{RUN} --tune-lr 1e-3 1e-9 --tune-seeds 1 --jobs 2 --seed 0 1", out)
    [added] = out.glob("runs/*/seed-1")
    assert added.parent == min(losses, key=losses.__getitem__), "the second seed takes the best rate"
    assert written == {path: path.stat().st_mtime_ns for path in results}, "nothing is done twice"
    [row] = csv.DictReader((out / "leaderboard.csv").open())
    assert (row["seeds"], row["lr"]) == ("2", "0.001")
    assert "chosen" in (out / "leaderboard.html").read_text()
    assert "2 of 2 runs have ended before" in capsys.readouterr().out

    sweep(f"{RUN} --tune-lr 1e-3 1e-9 --jobs 2 --seed 0 1", out)
    assert len(list(out.glob("runs/*/seed-1/result.json"))) == 2, "by default each seed tries each rate"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--conector mlp", "--connector"),
        ("--connector mlp perceptron", "perceiver"),
        ("--connector mlp --connector.num-latents 4", "num-latents"),
        ("--lr 1e-3 -1", "'lr' is -1"),
        ("--resume auto", "leave out --resume"),
        ("--jobs -1", "--jobs"),
        ("--tune-seeds -1", "--tune-seeds"),
        ("--tune-seeds 1", "give that too"),
        ("--tune-lr 1e-3 --tune-seeds 3 --seed 0 1", "there are 2 seeds"),
        ("--tune-lr 0", "above 0"),
        ("--tune-lr 1e-3 --lr 1e-3 2e-3", "give it one value"),
        ("--tune-lr 1e-3 --data text:{file}", "validation split"),
        ("--jobs", "--jobs"),
        ("--workers 0 1", "are the same run"),
        ("--data shapes --data easy_vqa", "--eval-data"),
        ("--eval-limit 5 6", "judged on different items"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(SystemExit) as stop:
        sweep(words.format(file=tmp_path / "a.txt"), tmp_path / "out")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        sweep(RUN, tmp_path)
    assert "holds a run" in capsys.readouterr().err
