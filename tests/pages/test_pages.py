"""Pages do what they say: their files are written and their commands run, in order, and then their Python."""

import shutil
from pathlib import Path

import pytest

from tests.pages.blocks import PAGES, ROOT
from tests.pages.shell import run_page, runs
from tests.pages.test_guide import GUIDE

QUICK_START = ROOT / "docs" / "quick-start.md"
OTHERS = [page for page in PAGES if runs(page) and page not in (GUIDE, QUICK_START)]


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in OTHERS])
def test_a_page_runs(page: Path, inputs: Path, environment: dict[str, str], tmp_path: Path) -> None:
    run_page(page, shutil.copytree(inputs, tmp_path / "here", symlinks=True), environment)


@pytest.mark.slow
def test_the_quick_start_runs_with_nothing_prepared(environment: dict[str, str], tmp_path: Path) -> None:
    run_page(QUICK_START, tmp_path, environment)
    for file in ("first/report.html", "which/leaderboard.html", "llava/config.json"):
        assert (tmp_path / "runs" / file).exists()
