"""docs/write-a-plugin.md does what it says: its files are written and its commands run, in order."""

import os
import re
import site
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

from beni.interfaces import INTERFACES
from beni.registry import GROUPS
from beni.testing import SUITES
from tests.third_party.elsewhere import ROOT

GUIDE = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
OFFLINE = "--no-deps --no-build-isolation --no-index --disable-pip-version-check"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of an environment of its own that sees this one's packages and can install more, without network."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "parent.pth").write_text("\n".join(lines) + "\n")
    commands = {
        "beni": "-c 'from beni.cli.main import main; main()' \"$@\"",
        "pip": f'-m pip "$@" {OFFLINE}',
        "pytest": '-m pytest -p no:cacheprovider "$@"',
    }
    for name, how in commands.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" {how}\n')
        script.chmod(0o755)
    return os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_guide_runs(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    ran = []
    for file, language, text in BLOCK.findall(GUIDE):
        if language == "python":
            assert file, f"a file that has no name: {text[:80]}"
            (tmp_path / file).write_text(text)
        elif language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{text}{done.stdout[-3000:]}{done.stderr[-3000:]}"
            ran.append(done.stdout)
        else:
            shown = tomllib.loads(text)["project"]["entry-points"]
            written = tomllib.loads((tmp_path / "row-pool" / "pyproject.toml").read_text())
            assert written["project"]["entry-points"] == shown
    shown, checked, tested, trained, _ = ran
    assert "row_pool.part:RowPool (row-pool 0.1.0)" in shown
    assert "failed" not in checked and re.search(r"(\d+) checks in \d+ s: \1 ok\n$", checked), checked
    assert re.search(r"\d+ passed, 2 deselected", tested), tested
    assert '"steps": 2' in trained
    assert (tmp_path / "run2" / "model" / "model.safetensors").exists()


def test_the_table_names_every_kind() -> None:
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in GUIDE.splitlines()) if len(cells) > 6}
    for kind, group in GROUPS.items():
        assert group in rows[kind][2] and SUITES[kind].__name__ in rows[kind][6]
        wanted = set(getattr(INTERFACES[kind], "__abstractmethods__", ()))
        named = {name.partition("(")[0] for name in re.findall(r"`([\w(), ]+)`", rows[kind][4])}
        assert wanted <= named, f"{kind}: {wanted - named} are not in the table"
        for name in named:
            assert hasattr(INTERFACES[kind], name) or name in INTERFACES[kind].__annotations__
