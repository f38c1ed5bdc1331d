"""`beni check`: one line per check, and an exit code; parts are named as everywhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from beni.cli import check
from beni.cli.main import main
from beni.testing import Conformance, Outcome, checks
from tests.pages.blocks import blocks
from tests.pages.test_guide import GUIDE

SMALL = ["--data", "shapes?images=8", "--steps", "2", "--eval-limit", "4", "--device", "cpu"]


def code_of(*words: str) -> int | str | None:
    """The exit code of a command."""
    try:
        main(words)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(autouse=True)
def _as_loud_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_quiet", lambda: None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of the guide, which is no package."""
    [text] = [block.text for block in blocks(GUIDE.read_text(encoding="utf-8")) if block.said == "firsts.py"]
    path = tmp_path / "firsts.py"
    path.write_text(text)
    return path


def test_a_class_in_a_file_is_checked_and_trained(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    assert code_of("check", "connector", "firsts.py:Firsts", "--connector.tokens", "3") == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == f"connector {file}:Firsts: {file}:Firsts ({file})"
    assert all(re.match(r"(ok|skipped) ", line) for line in lines)
    assert re.fullmatch(rf"{len(lines)} checks in \d+ s: {len(lines)} ok", last)
    assert code_of("train", "--connector", "firsts.py:Firsts", "--connector.tokens", "3", *SMALL, "--out", "run") == 0
    table = json.loads(Path("run/config.json").read_text())["connector"]
    assert table["name"] == f"{file}:Firsts" and table["tokens"] == 3


def few_checks(suite: type[Conformance]) -> list[Outcome]:
    """In place of all of them."""
    made = suite()
    return [Outcome(f"tokens {made.chosen().config.tokens}", "ok")]  # type: ignore[attr-defined]


def test_options_reach_the_part(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "run_all", few_checks)
    assert code_of("check", "connector", f"{file}:Firsts", "--connector.tokens", "7") == 0
    assert "ok       tokens 7\n" in capsys.readouterr().out


def test_a_held_part_is_chosen_as_for_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def inner(suite: type[Conformance]) -> list[Outcome]:
        held = suite().chosen().config.inner  # type: ignore[attr-defined]
        return [Outcome(f"{held.plugin.name} {held.config.num_latents}", "ok")]

    monkeypatch.setattr(check, "run_all", inner)
    words = ["--connector.inner", "perceiver", "--connector.inner.num-latents", "8"]
    assert code_of("check", "connector", "dragonfly", *words) == 0
    assert "ok       perceiver 8\n" in capsys.readouterr().out


def test_a_failed_check_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [Outcome("this", "ok"), Outcome("that", "failed", "do it"), Outcome("else", "skipped", "no need")]
    monkeypatch.setattr(check, "run_all", lambda suite: iter(outcomes))
    assert code_of("check", "connector", "mlp@beni") == 1
    assert capsys.readouterr().out.splitlines()[1:-1] == [
        "ok       this",
        "failed   that: do it",
        "skipped  else: no need",
    ]


def test_one_mistake_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """However many checks meet it, with whatever numbers."""
    told = [("this", "(4, 33) is not 32"), ("that", "(40, 33) is not 32"), ("else", "another"), ("too", "another")]
    outcomes = [Outcome(name, "failed", reason) for name, reason in told]
    monkeypatch.setattr(check, "run_all", lambda suite: iter(outcomes))
    assert code_of("check", "connector", "mlp@beni") == 1
    *lines, last = capsys.readouterr().out.splitlines()[1:]
    assert lines == [
        "failed   this: (4, 33) is not 32",
        "failed   that: as above, 'this'",
        "failed   else: another",
        "failed   too: as above, 'else'",
    ]
    assert last.endswith("4 failed for 2 reasons")
    outcomes = [Outcome(name, "failed", f"KeyError: 0 (part.py:{line})") for name, line in (("this", 8), ("that", 99))]
    monkeypatch.setattr(check, "run_all", lambda suite: iter(outcomes))
    assert code_of("check", "connector", "mlp@beni") == 1
    assert "as above" not in capsys.readouterr().out, "they are in two places"


@pytest.mark.parametrize("line", ["check --help", "check connector -h", "plugins --help"])
def test_help_is_no_mistake(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(line.split())
    assert capsys.readouterr().out.startswith(f"usage: beni {line.split()[0]} ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("check connector percever", r"unknown connector 'percever': did you mean perceiver\?"),
        ("check connector gone.py:Part", r"there is no file .*gone\.py"),
        ("check connector beni_plugins.views.single:Single", "does not derive from beni.interfaces.Connector"),
        ("check conector mlp", r"usage: beni check encoder\|connector\|"),
        ("check conector mlp", r"did you mean connector\?$"),
        ("check connector", "usage: beni check"),
        ("check connector mlp --connector.knd linear", "unknown option --connector.knd: did you mean --connector.kind"),
        ("check connector mlp --connector.kind cubic", "none of linear, mlpNx_gelu"),
        ("check connector perceiver --connector.depth deep", "not a whole number"),
        ("plugins --verfy", r"usage: beni plugins \[--verify \| show"),
    ],
)
def test_mistakes_are_told_in_one_line(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*line.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and re.search(said, told.err) and told.err.count("\n") == 1


def test_a_source_is_checked_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("check", "source", "shapes", "--source.images", "12") == 0
    assert re.search(r"ok       samples can be read in any order\n.*: \d+ ok\n$", capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_may_leave(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`beni plugins | head`: whether output is written line by line or all at the end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    words = [sys.executable, "-c", "from beni.cli.main import main; main(['plugins'])"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
    assert (process.returncode, complaint) == (141, "")


def test_checks_that_start_processes_can_be_told() -> None:
    from beni.testing import ConnectorConformance

    spawning = [name for name in checks(ConnectorConformance) if hasattr(getattr(ConnectorConformance, name), "spawns")]
    assert len(spawning) == 2 and all("processes" in name for name in spawning)


def test_options_that_the_small_model_cannot_have_are_a_mistake_not_a_failed_check(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert code_of("check", "fusion", "xattn", "--fusion.every", "4") == 2
    said = capsys.readouterr().err
    assert re.search(r"refuses the small model .* 3 layers: .*--fusion\.every", said)
