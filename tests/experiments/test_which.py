"""The sweeps behind docs/which-is-better.md: each is the grid that the page tells of, and its parts go together."""

from pathlib import Path

import pytest

from beni.cli.grid import SWEEP, combinations
from beni.cli.options import parse_run
from beni.data.spec import parse
from beni.interfaces import load
from beni.model.build import check_pair, describe, view_of
from beni.sweep.cells import grid
from beni_plugins.sources.easy_vqa import EasyVqa, EasyVqaConfig

FOLDER = Path(__file__).parents[2] / "experiments" / "which"
CELLS = {
    "fusion": ["inline × peft none", "inline × peft lora", "xattn × peft none", "xattn × peft lora"],
    "views": ["single", "split", "pyramid"],
    "architectures": [f"{c} × {f}" for c in ("mlp", "concat", "perceiver", "sva") for f in ("inline", "xattn")],
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])  # where the page's commands are run


def test_all_sweeps_are_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == {*CELLS, "language"}


@pytest.mark.parametrize("name", CELLS)
def test_a_sweep_has_these_cells(name: str) -> None:
    words = ["--config", str(FOLDER / f"{name}.toml")]
    found = [(each.varied, parse_run(each.words, "sweep.py", others=[SWEEP])) for each in combinations(words)]
    cells, seeds = grid(found)
    assert seeds == [0, 1, 2]
    assert [cell.name for cell in cells] == CELLS[name]
    for cell in cells:
        specs = describe(cell.config.encoders)
        load("connector", cell.config.connector).check(cell.config.connector.config, view_of(cell.config.view), specs)  # type: ignore[attr-defined]
        check_pair(cell.config.connector, cell.config.fusion, specs)


def test_the_language_model_reads_every_question_and_sees_no_picture() -> None:
    config = parse_run(["--config", str(FOLDER / "language.toml")], "run.py")
    [spec] = config.data.data
    assert config.optim.train == ("llm",)
    source = parse(spec)
    for split in ("train", "val", "test"):
        shown, read = EasyVqa(EasyVqaConfig()).split(split), source.samples(split)
        assert shown and read and len(read) == len(shown)
        assert [(each.question, each.answer) for each in read] == [(each.question, each.answer) for each in shown]
        assert not any(each.images for each in read)
