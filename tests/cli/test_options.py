"""Parts first, then everybody's options; a mistake is one line that says what to do."""

import shlex
from pathlib import Path

import pytest

from beni.cli.commands import EvaluateOptions
from beni.cli.options import parse, parse_run
from beni.config import RunConfig
from beni.errors import BeniError


def run(line: str) -> RunConfig:
    return parse_run(shlex.split(line), "run.py")


def test_a_part_brings_its_options() -> None:
    config = run("--connector perceiver --connector.num-latents 5 --fusion xattn --fusion.every 2 --lr 0.5")
    assert config.connector.config.num_latents == 5  # type: ignore[attr-defined]
    assert config.fusion.config.every == 2 and config.optim.lr == 0.5  # type: ignore[attr-defined]
    assert list(config.encoders) == ["main"] and config.llm.plugin.name == "tiny"


def test_several_encoders_have_keys() -> None:
    config = run("--encoder a=tiny b=tiny --encoder.a.width 64 --encoder.b.layers 1")
    assert {key: part.config.width for key, part in config.encoders.items()} == {"a": 64, "b": 128}  # type: ignore[attr-defined]
    assert config.encoders["b"].config.layers == 1  # type: ignore[attr-defined]
    assert list(run("--encoder tiny timm:resnet18").encoders) == ["tiny", "timm"]


def test_lists_and_flags() -> None:
    config = run("--data shapes easy_vqa --weights 1 2.5 --train connector llm --dry-run")
    assert config.data.data == ("shapes", "easy_vqa") and config.data.weights == (1.0, 2.5)
    assert config.optim.train == ("connector", "llm") and config.run.dry_run
    assert not run("--no-dry-run").run.dry_run


def test_a_hub_id_is_an_llm() -> None:
    config = run("--llm owner/name")
    assert (config.llm.plugin.name, config.llm.config.model) == ("hf", "owner/name")  # type: ignore[attr-defined]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.toml"
    path.write_text(
        '[encoders.x]\nname = "tiny"\nwidth = 64\n[connector]\nname = "perceiver"\nnum_latents = 8\ndepth = 1\n'
        '[optim]\nlr = 0.1\nsteps = 3\n[data]\ndata = ["shapes"]\n'
    )
    return path


def test_the_command_line_overrides_the_file(file: Path) -> None:
    config = run(f"--config {file} --connector.num-latents 9 --lr 0.2 --encoder.x.layers 1")
    assert (config.connector.config.num_latents, config.connector.config.depth) == (9, 1)  # type: ignore[attr-defined]
    assert (config.optim.lr, config.optim.steps) == (0.2, 3)
    assert (config.encoders["x"].config.width, config.encoders["x"].config.layers) == (64, 1)  # type: ignore[attr-defined]
    assert config.data.data == ("shapes",)


def test_another_part_drops_the_options_of_the_files_part(file: Path) -> None:
    assert run(f"--config {file} --connector mlp").connector == run("--connector mlp").connector
    again = run(f"--config={file} --connector=perceiver").connector.config
    assert again.num_latents == 32  # type: ignore[attr-defined]  # named anew: its own defaults
    assert list(run(f"--config {file} --encoder tiny").encoders) == ["main"]


MISTAKES = {
    "--conector perceiver": "unknown option --conector: did you mean --connector?",
    "--connector percever": "unknown connector 'percever': did you mean perceiver? installed:",
    "--connector perceiver --connector.depht 6": "unknown option --connector.depht: did you mean --connector.depth?",
    "--connector.num-latents 64": "unknown option --connector.num-latents: connector 'mlp' has --connector.",
    "--num-latents 6 --connector perceiver": "unknown option --num-latents: did you mean --connector.num-latents?",
    "--connector perceiver --connector.num-latents many": "--connector.num-latents many: not a whole number",
    "--connector perceiver --connector.variant foo": "--connector.variant foo: choose one of flamingo, idefics2",
    "--view.fit stretch": "--view.fit stretch: choose one of squash, pad",
    "--encoder timn:vit": "unknown encoder 'timn': did you mean",
    "--encoder a=tiny a=tiny": "--encoder: two encoders have the key 'a'",
    "--encoder tiny tiny": "--encoder: two encoders have the key 'tiny': give each its own, as in a=tiny b=tiny",
    "--encoder a-b=tiny": "--encoder a-b=tiny: the key 'a-b' must be a word",
    "--encoder class=tiny": "--encoder class=tiny: the key 'class' must be a word",
    "--encoder a=": "--encoder a=: a name is missing, as in a=tiny",
    "--encoder a=tiny b=tiny --encoder.width 6": "unknown option --encoder.width: did you mean --encoder.a.width or "
    "--encoder.b.width?",
    "--encoder.size 61": "encoder 'tiny'",
    "--encoder tiny:foo": "encoder 'tiny' takes nothing behind a colon: write 'tiny' instead of 'tiny:foo'",
    "--encoder": "--encoder needs a value",
    "--connector": "--connector needs a value",
    "--out": "--out needs a value",
    "--llm nosuch": "unknown llm 'nosuch': installed: hf, smollm2, tiny; a Hugging Face model is written owner/name",
    "--optim.stepz 10": "unknown option --optim.stepz: did you mean --steps?",
    "--steps ten": "--steps ten: not a whole number",
    "--weights 1 x": "--weights 1 x: not numbers",
    "--seed -1": "option 'seed' is -1; it must be at least 0",
    "--dtype fp64": "--dtype fp64: choose one of auto, fp32, bf16",
    "--data": "option 'data' is empty: name at least one source",
    "--dry-run True": "unexpected 'True' behind --dry-run",
    "extra": "unexpected 'extra'",
    "--config gone.toml": "there is no configuration file gone.toml",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line: str) -> None:
    with pytest.raises(BeniError) as caught:
        run(line)
    assert str(caught.value).startswith(MISTAKES[line]) and "\n" not in str(caught.value)


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[connector]\nname = "perceiver"\nnum_latents = "many"\n')
    with pytest.raises(
        BeniError, match=r"a\.toml: connector 'perceiver', option 'num_latents': should be a valid integer"
    ):
        run(f"--config {path}")


def test_help_lists_the_options_of_the_chosen_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--connector perceiver --help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())  # however the lines are broken
    assert stop.value.code == 0
    for expected in (
        "--connector.num-latents",
        "--encoder.width",
        "--row-tokens",
        "concat, mlp, perceiver",
        "Visual tokens per crop",
    ):
        assert expected in shown


def test_commands_with_required_options_say_which() -> None:
    with pytest.raises(BeniError, match=r"^--model is required: Folder of a saved model"):
        parse(EvaluateOptions, [], "evaluate")
    with pytest.raises(BeniError, match=r"^unknown option --modle: did you mean --model\?"):
        parse(EvaluateOptions, ["--modle", "x"], "evaluate")
    assert parse(EvaluateOptions, ["--model", "x", "--blind"], "evaluate").blind
