"""Which combinations a command line asks for."""

from pathlib import Path

import pytest

from beni.cli.grid import combinations, installed
from beni.cli.options import parse_run
from beni.errors import ConfigError, PluginError
from beni.registry import available


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("--steps 3", ["--steps 3"]),
        ("", [""]),
        (
            "--connector mlp perceiver --rows 2 --fusion inline xattn",
            [
                "--connector mlp --rows 2 --fusion inline",
                "--connector mlp --rows 2 --fusion xattn",
                "--connector perceiver --rows 2 --fusion inline",
                "--connector perceiver --rows 2 --fusion xattn",
            ],
        ),
        ("--connector=mlp --connector perceiver", ["--connector mlp", "--connector perceiver"]),
        ("--lr 1e-4 2e-4 --seed=0", ["--lr 1e-4 --seed 0", "--lr 2e-4 --seed 0"]),
        ("--lr -1 2", ["--lr -1", "--lr 2"]),  # what is wrong with -1 is told where options are read
        ("--encoder a=tiny b=tiny", ["--encoder a=tiny b=tiny"]),
        ("--encoder tiny --encoder timm:x", ["--encoder tiny", "--encoder timm:x"]),
        ("--train connector llm", ["--train connector llm"]),
        ("--train connector --train connector llm", ["--train connector", "--train connector llm"]),
        ("--part-lr llm 1e-5 connector 1e-4", ["--part-lr llm 1e-5 connector 1e-4"]),
        ("--data shapes easy_vqa", ["--data shapes easy_vqa"]),
        ("--encoder.size 16 32", ["--encoder.size 16", "--encoder.size 32"]),
        ("--encoder.stem 8 16", ["--encoder.stem 8 16"]),
        ("--encoder.stem 8 --encoder.stem 8 16", ["--encoder.stem 8", "--encoder.stem 8 16"]),
        (
            "--encoder a=tiny b=tiny --encoder.a.size 16 32",
            ["--encoder a=tiny b=tiny --encoder.a.size 16", "--encoder a=tiny b=tiny --encoder.a.size 32"],
        ),
        ("--compile --no-compile", ["--compile", "--no-compile"]),
        (
            "--view anyres --view.overview --view.no-overview",
            ["--view anyres --view.overview", "--view anyres --view.no-overview"],
        ),
        ("--view single anyres --view.no-overview", ["--view single", "--view anyres --view.no-overview"]),
        (
            "--encoder a=tiny b=tiny --encoder tiny --encoder.size 16 --encoder.a.size 32",
            ["--encoder a=tiny b=tiny --encoder.a.size 32", "--encoder tiny --encoder.size 16"],
        ),
        ("--seed 0 0 --seed 0", ["--seed 0"]),
        (
            "--connector mlp perceiver --connector.num-latents 16 64",
            [
                "--connector mlp",
                "--connector perceiver --connector.num-latents 16",
                "--connector perceiver --connector.num-latents 64",
            ],
        ),
        (
            "--connector dragonfly --connector.inner mlp perceiver --connector.inner.num-latents 8",
            [
                "--connector dragonfly --connector.inner mlp",
                "--connector dragonfly --connector.inner perceiver --connector.inner.num-latents 8",
            ],
        ),
        # what nothing has, and what has no value, is told where options are read
        ("--conector mlp perceiver", ["--conector mlp perceiver"]),
        ("--connector.num-latents 16 64", ["--connector.num-latents 16 64"]),
        ("--connector", ["--connector"]),
        ("--help mlp", ["--help mlp"]),
    ],
)
def test_several_values_are_several_command_lines(words: str, lines: list[str]) -> None:
    assert [" ".join(each.words) for each in combinations(words.split())] == lines


def test_they_are_called_by_what_differs() -> None:
    parts = "--rows 2 --connector mlp perceiver --connector.num-latents 4 8 --encoder a=tiny b=tiny --encoder tiny"
    grid = combinations([*parts.split(), "--compile", "--no-compile"])
    assert grid[0].varied == {"connector": "mlp", "compile": "on", "encoder": "a=tiny + b=tiny"}
    assert grid[-1].name == "connector=perceiver connector.num-latents=8 encoder=tiny compile=off"


FILE = """
[connector]
name = "perceiver"
depth = 1
[view]
name = "anyres"
[encoders.main]
name = "tiny"
size = 16
[sweep]
"connector.num_latents" = [4, 8]
lr = [1e-3]
train = [["connector", "llm"]]
compile = [true, false]
"view.overview" = [false]
"""


def test_a_file_chooses_and_varies_what_the_command_line_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(FILE)
    config = ["--config", str(tmp_path / "a.toml")]
    grid = combinations([*config, "--lr", "2"])
    assert [" ".join(each.words[:-4]) for each in grid] == [
        f"--connector.num-latents {count} --train connector llm {switch} --view.no-overview"
        for count in (4, 8)
        for switch in ("--compile", "--no-compile")
    ]
    assert all(each.words[-4:] == (*config, "--lr", "2") for each in grid)
    assert parse_run(grid[0].words, "x", others=["sweep"]).connector.config.num_latents == 4
    with pytest.raises(ConfigError, match="sweep"):
        parse_run(grid[0].words, "x")


def test_one_file_at_a_time() -> None:
    with pytest.raises(ConfigError, match="one file"):
        combinations(["--config", "a.toml", "b.toml"])


@pytest.mark.parametrize("line", ["sweep = ['lr']", "[sweep]\nlr = 1", "[sweep]\nlr = []"])
def test_what_is_no_table_of_lists(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.toml").write_text(line)
    with pytest.raises(ConfigError, match="sweep"):
        combinations(["--config", str(tmp_path / "a.toml")])


def test_a_part_that_does_not_exist() -> None:
    with pytest.raises(PluginError, match="perceiver"):
        combinations(["--connector", "mlp", "percever", "--connector.num-latents", "4"])


def test_all_of_them() -> None:
    connectors, fusions = installed("connector"), installed("fusion")
    assert {"mlp", "perceiver", "sva"} <= set(connectors) and len(fusions) >= 4
    assert len(combinations(["--rows", "2"], every=True)) == len(connectors) * len(fusions)
    found = combinations(["--connector", "mlp"], every=True)
    assert [each.varied["fusion"] for each in found] == fusions


def test_what_is_broken_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = type(next(iter(available("view"))))

    def load(self: object) -> type:
        raise PluginError("broken")

    monkeypatch.setattr(plugin, "load", load)
    assert installed("view") == []
