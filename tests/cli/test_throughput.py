"""`beni throughput` from the command line: a table, three reports, and one line for every mistake."""

import json
import re
from pathlib import Path

import pytest

from beni.cli.main import run
from beni.cli.options import parse, split_own
from beni.cli.throughput import ThroughputOptions
from beni.config import RunConfig
from tests.bench.test_page import ROW

SMALL = (
    "--data shapes?images=12 --workers 0 --rows 1 --row-tokens 512 --device cpu "
    "--warmup-steps 1 --windows 2 --window-steps 1"
)
TINY = "--encoder.size 16 --encoder.stem 8 --encoder.blocks 0 --encoder.layers 1 --encoder.width 16 --encoder.heads 2"


def throughput(words: str, out: Path) -> None:
    run("throughput", [*words.split(), "--out", str(out)])


def test_one_combination(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    throughput(f"{SMALL} {TINY} --peak-tflops 0.5", tmp_path / "out")
    shown = capsys.readouterr().out
    assert re.search(r"^mlp × inline\n  samples/s +\d", shown, re.MULTILINE) and "\nbound by " in shown
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    [row] = told["rows"]
    assert row["peak"] == {"flops_per_s": 5e11, "precision": "fp32", "source": "given"}
    assert told["machine"]["PyTorch"] and row["device"].startswith("CPU")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]


def test_several_are_measured_apart_and_what_cannot_be_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    throughput(f"{SMALL} {TINY} --connector mlp --fusion inline sva", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["fusion"] for row in told["rows"]] == ["inline"]
    [refused] = told["refused"]
    assert refused["parts"] == "fusion=sva" and "keep" in refused["reason"]
    captured = capsys.readouterr()
    assert "[2/2] fusion=sva" in captured.err and "refused: " in captured.err


def test_a_defect_of_one_part_does_not_lose_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(config: RunConfig, *_: object, **__: object) -> dict[str, object]:
        if config.connector.plugin.name == "perceiver":
            raise TypeError("a part is broken\nin two lines")
        return ROW

    monkeypatch.setattr("beni.cli.throughput._measured", measured)
    throughput(f"{SMALL} --connector mlp perceiver qformer", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(told["rows"]) == 2
    assert told["refused"] == [{"parts": "connector=perceiver", "reason": "TypeError: a part is broken"}]
    assert "Traceback" in capsys.readouterr().err, "its author needs all of it"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--conector mlp", "--connector"),
        ("--connector perceptron", "perceiver"),
        ("--windows 0", "--windows and --window-steps are 1 at least"),
        ("--window-steps many", "--window-steps"),
        ("--scaling --no-all --dry-run", "leave them out"),
        (f"{SMALL} --connector mlp --fusion sva", "keep"),
        ("--connector", "needs a value"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, said: str) -> None:
    with pytest.raises(SystemExit) as stop:
        throughput(words, tmp_path / "out")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error
    assert not (tmp_path / "out" / "report.json").exists()


def test_several_processes_measure_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        throughput("--fusion inline xattn", tmp_path / "out")
    assert "several processes measure one combination at a time" in capsys.readouterr().err


def test_own_options_are_told_from_those_of_training() -> None:
    words = ["--scaling", "--window_steps", "3", "--rows", "2", "--all", "--out=x", "--connector", "mlp"]
    own, rest = split_own(ThroughputOptions, words)
    options = parse(ThroughputOptions, own, "program")
    assert (options.window_steps, options.all, options.out) == (3, True, "x")
    assert options.scaling
    assert rest == ["--rows", "2", "--connector", "mlp"]
