"""Files with several stages: what each of them changes, and what the command line changes in all."""

import shlex
from pathlib import Path

import pytest

from beni.cli.main import run
from beni.cli.options import parse_run, parse_stages
from beni.errors import ConfigError

FILE = """
[connector]
name = "mlp"
kind = "mlp2x_gelu"
[view]
name = "single"
[optim]
steps = 4
weight_decay = 0.0

[[stages]]
name = "align"
[stages.optim]
train = ["connector"]
lr = 1e-3
[stages.data]
template = "plain"

[[stages]]
name = "tune"
[stages.optim]
train = ["connector", "llm"]
[stages.connector]
kind = "linear"
[stages.view]
name = "split"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(FILE)
    return path


def test_a_stage_changes_tables_of_the_file(file: Path) -> None:
    stages = parse_stages(["--config", str(file)], "run.py").stages
    assert list(stages) == ["align", "tune"]
    align, tune = stages.values()
    assert (align.optim.train, align.optim.lr, align.data.template) == (("connector",), 1e-3, "plain")
    assert (tune.optim.train, tune.optim.lr, tune.data.template) == (("connector", "llm"), 2e-4, "")
    kinds = [stage.connector.config.kind for stage in (align, tune)]  # type: ignore[attr-defined]
    assert kinds == ["mlp2x_gelu", "linear"]
    for stage in (align, tune):
        assert (stage.optim.steps, stage.optim.weight_decay) == (4, 0.0)
    assert (align.view.plugin.name, tune.view.plugin.name) == ("single", "split")


def test_the_command_line_is_about_every_stage(file: Path) -> None:
    asked = parse_stages(
        shlex.split(f"--config {file} --steps 9 --out runs/x --stage tune --connector.kind mlp3x_gelu"), "p"
    )
    assert {stage.optim.steps for stage in asked.stages.values()} == {9}
    assert {stage.connector.config.kind for stage in asked.stages.values()} == {"mlp3x_gelu"}  # type: ignore[attr-defined]
    assert (asked.only, asked.out) == ("tune", "runs/x")
    named = parse_stages(["--config", str(file)], "p").out
    assert named.startswith("runs") and named.endswith("-recipe")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--stage tun", r"--stage tun: .*recipe\.toml has no such stage: did you mean 'tune'\?"),
        ("--resume auto", "--resume auto continues the stages in --out"),
    ],
)
def test_mistakes_on_the_command_line(file: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_stages(["--config", str(file), *line.split()], "p")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[stages]]\nsteps = 4", "stage 1 needs a name of letters, digits, - and _, not None"),
        ("[[stages]]\nname = 'a/b'", "not 'a/b'"),
        ("[[stages]]\nname = 'a'\n[[stages]]\nname = 'a'", "two stages have the name 'a'"),
        ("[optim]\ninit = 'm'\n[[stages]]\nname = 'a'", r"init is where the first stage starts"),
        ("[[stages]]\nname = 'a'\n[stages.run]\nout = 'b'", "stage 'a' names a folder; its own is always OUT/a"),
        ("[stages]\nname = 'a'", r"stages are tables in a list, each \[\[stages\]\] with a name"),
        ("[[stages]]\nname = 'a'\n[stages.optm]\nlr = 1", r"no table \[optm\]: did you mean \[optim\]\?"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse_stages(["--config", str(path)], "p")


def test_a_stage_without_stages() -> None:
    with pytest.raises(ConfigError, match="--stage tune: the command line has no such stage: it has none"):
        parse_stages(["--stage", "tune"], "p")


def test_one_configuration_is_not_several(file: Path) -> None:
    with pytest.raises(ConfigError, match="the file has the stages align, tune"):
        parse_run(["--config", str(file)], "p")


def test_the_command_trains_them_all(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = (
        "--data shapes?images=8 --eval-limit 4 --workers 0 --steps 1 --encoder.size 16 --encoder.stem 8 16 "
        "--encoder.blocks 0 0 --encoder.width 16 --encoder.heads 2 --encoder.layers 1 --llm.width 32 --llm.heads 2 "
        "--device cpu"
    )
    run("train", ["--config", str(file), "--out", str(tmp_path / "out"), *small.split()])
    assert [(tmp_path / "out" / name / "report.html").is_file() for name in ("align", "tune")] == [True, True]
    assert capsys.readouterr().out.count('"accuracy"') == 2
