"""What `beni new-plugin` writes works as it is."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from beni.cli.main import main
from beni.cli.new_plugin import write
from beni.errors import ConfigError
from beni.registry import GROUPS
from beni.testing import SUITES, checks, run, suite_for

KINDS = ("connector", "encoder", "fusion", "view")


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_part_keeps_what_its_kind_promises(kind: str, tmp_path: Path) -> None:
    """All checks but those that start processes; the guide's test runs them for an installed package."""
    folder = write(f"fresh-{kind}", kind, tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {GROUPS[kind]: {f"fresh_{kind}": f"fresh_{kind}.part:Fresh{kind.capitalize()}"}}
    file = folder / "src" / f"fresh_{kind}" / "part.py"
    suite = suite_for(kind, f"{file}:Fresh{kind.capitalize()}", {})
    outcomes = [run(suite, name) for name in checks(suite) if not hasattr(getattr(SUITES[kind], name), "spawns")]
    assert len(outcomes) > 12
    assert not [outcome for outcome in outcomes if outcome.status == "failed"]


def test_its_tests_need_none_of_the_options_of_tests_around_it(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '--no-such-option'\n")
    folder = write("row-pool", "connector", tmp_path)
    (folder / "tests" / "test_row_pool.py").write_text("def test_it(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_of_a_new_part_is_its_suite(kind: str, tmp_path: Path) -> None:
    folder = write(f"fresh-{kind}", kind, tmp_path)
    [file] = (folder / "tests").iterdir()
    names: dict[str, type] = {}
    exec(file.read_text(), names)
    suite = names[f"TestFresh{kind.capitalize()}"]
    assert issubclass(suite, SUITES[kind]) and suite.part == f"fresh_{kind}"
    for source in folder.rglob("*.py"):
        assert ast.get_docstring(ast.parse(source.read_text())), f"{source} says what it is"


@pytest.mark.parametrize("name", ["Row", "row pool", "../row", "1row", "row--pool", "", "class", "row.pool"])
def test_names_that_cannot_be_packages(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot name a package: use small letters.*as in row-pool"):
        write(name, "connector", tmp_path)
    assert not list(tmp_path.iterdir())


def test_names_that_are_taken(tmp_path: Path) -> None:
    write("row-pool", "connector", tmp_path)
    with pytest.raises(ConfigError, match="row-pool exists already"):
        write("row-pool", "view", tmp_path)
    with pytest.raises(ConfigError, match="a connector 'mlp' is installed already"):
        write("mlp", "connector", tmp_path)
    with pytest.raises(ConfigError, match="a module 'torch' is installed"):
        write("torch", "connector", tmp_path)


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["new-plugin", "mid-crop", "--kind", "view", "--into", str(tmp_path)])
    told = capsys.readouterr().out
    assert f"pip install -e {tmp_path / 'mid-crop'}\n" in told and "beni check view mid_crop\n" in told
    assert (tmp_path / "mid-crop" / "src" / "mid_crop" / "part.py").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["new-plugin", "mid-crop", "--kind", "llm"])
    assert stop.value.code == 2
    assert "choose one of connector, encoder, fusion, view" in capsys.readouterr().err.replace("'", "").replace("{", "")
