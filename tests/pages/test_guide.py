"""docs/write-a-plugin.md does what it says, and its table names every kind of part."""

import re
import tomllib
from pathlib import Path

import pytest

from beni.interfaces import INTERFACES
from beni.registry import GROUPS
from beni.testing import SUITES
from tests.pages.blocks import ROOT, blocks
from tests.pages.shell import run_page

GUIDE = ROOT / "docs" / "write-a-plugin.md"


@pytest.mark.slow
def test_the_guide_runs(environment: dict[str, str], tmp_path: Path) -> None:
    for name in ("experiments", "pyproject.toml"):  # as in a clone, whose options of pytest are not the package's
        (tmp_path / name).symlink_to(ROOT / name)
    shown, checked, tested, trained, _ = run_page(GUIDE, tmp_path, environment)
    assert "row_pool.part:RowPool (row-pool 0.1.0)" in shown
    assert "failed" not in checked and re.search(r"(\d+) checks in \d+ s: \1 ok\n$", checked), checked
    assert re.search(r"\d+ passed, 2 deselected", tested), tested
    assert '"steps": 2' in trained
    assert (tmp_path / "run2" / "model" / "model.safetensors").exists()
    [table] = [block.text for block in blocks(GUIDE.read_text(encoding="utf-8")) if block.language == "toml"]
    written = tomllib.loads((tmp_path / "row-pool" / "pyproject.toml").read_text(encoding="utf-8"))
    assert written["project"]["entry-points"] == tomllib.loads(table)["project"]["entry-points"]


def test_the_table_names_every_kind() -> None:
    rows = {
        cells[1].strip(): cells
        for cells in (line.split("|") for line in GUIDE.read_text(encoding="utf-8").splitlines())
        if len(cells) > 6
    }
    for kind, group in GROUPS.items():
        assert group in rows[kind][2] and SUITES[kind].__name__ in rows[kind][6]
        wanted = set(getattr(INTERFACES[kind], "__abstractmethods__", ()))
        named = {name.partition("(")[0] for name in re.findall(r"`([\w(), ]+)`", rows[kind][4])}
        assert wanted <= named, f"{kind}: {wanted - named} are not in the table"
        for name in named:
            assert hasattr(INTERFACES[kind], name) or name in INTERFACES[kind].__annotations__
