"""Parts first, then everybody's options; a mistake is one line that says what to do."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import beni
from beni.cli import describe
from beni.cli.chat import ChatOptions
from beni.cli.commands import EvaluateOptions, GenerateOptions
from beni.cli.export import ExportOptions
from beni.cli.main import main
from beni.cli.options import parse, parse_run
from beni.config import RunConfig, choose, run_config_from_dict
from beni.errors import BeniError
from beni.options import DataConfig, RunOptions
from beni.registry import available


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


def test_a_part_may_hold_another() -> None:
    config = run("--connector dragonfly --connector.pool 2 --connector.inner perceiver --connector.inner.num-latents 5")
    connector: Any = config.connector.config
    assert (connector.pool, connector.inner.plugin.name, connector.inner.config.num_latents) == (2, "perceiver", 5)
    default: Any = run("--connector dragonfly --connector.inner.kind linear").connector.config
    assert (default.inner.plugin.name, default.inner.config.kind) == ("mlp", "linear")
    deep: Any = run(
        "--connector dragonfly --connector.inner=dragonfly --connector.inner.inner concat "
        "--connector.inner.inner.order square4 --connector.inner.pool 8"
    ).connector.config
    assert deep.pool == 4 and deep.inner.config.pool == 8
    assert deep.inner.config.inner == choose("connector", "concat", {"order": "square4"})


def test_the_command_line_overrides_the_files_held_part(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        '[connector]\nname = "dragonfly"\npool = 8\n[connector.inner]\nname = "perceiver"\nnum_latents = 9\ndepth = 1\n'
    )
    config: Any = run(f"--config {path} --connector.inner.depth 3").connector.config
    assert (config.pool, config.inner.config.num_latents, config.inner.config.depth) == (8, 9, 3)
    config = run(f"--config {path} --connector.inner concat").connector.config
    assert (config.pool, config.inner) == (8, choose("connector", "concat"))
    config = run(f"--config {path} --connector dragonfly").connector.config
    assert (config.pool, config.inner.plugin.name) == (4, "mlp")


def test_any_kind_of_part_may_hold_any(tmp_path: Path) -> None:
    """An encoder and a view from a file, two of the encoder with keys of their own."""
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass, field\nfrom typing import Annotated\n"
        "from beni.config import OfKind, Part, PartConfig, choose\n"
        "def held(kind, name): return field(default_factory=lambda: choose(kind, name))\n"
        "@dataclass(frozen=True, slots=True)\nclass EC(PartConfig):\n"
        "    trunk_of: Annotated[Part, OfKind('encoder')] = held('encoder', 'tiny')\n    size: int = 3\n"
        "    def __post_init__(self): assert isinstance(self.trunk_of, Part)\n"
        "class Encoder:\n    beni_api = 1\n    Config = EC\n"
        "@dataclass(frozen=True, slots=True)\nclass VC(PartConfig):\n"
        "    one: Annotated[Part, OfKind('view')] = held('view', 'single')\n"
        "    two: Annotated[Part, OfKind('view')] = held('view', 'split')\n"
        "class View:\n    beni_api = 1\n    Config = VC\n"
    )
    own = tmp_path / "own.py"
    config = run(
        f"--encoder a={own}:Encoder b={own}:Encoder --encoder.a.trunk-of.width 64 --encoder.b.trunk_of timm:resnet18 "
        f"--encoder.b.size 4 --view {own}:View --view.one.fit pad --view.two split --view.two.tiles 3"
    )
    a, b = (config.encoders[key].config for key in "ab")
    assert a.trunk_of.config.width == 64 and b.trunk_of.config.model == "resnet18" and (a.size, b.size) == (3, 4)  # type: ignore[attr-defined]
    view: Any = config.view.config
    assert (view.one.config.fit, view.two.config.tiles) == ("pad", 3)
    assert run_config_from_dict(config.to_dict()) == config


def test_a_held_part_from_python() -> None:
    inner = {"name": "concat", "order": "raster2"}
    config = beni.configure(connector={"name": "dragonfly", "pool": 2, "inner": inner}, view="pyramid", steps=3)
    assert config == run(
        "--connector dragonfly --connector.pool 2 --connector.inner concat --connector.inner.order raster2 "
        "--view pyramid --steps 3"
    )
    assert beni.configure(connector={"name": "dragonfly", "inner": "concat"}).connector.config.inner == choose(  # type: ignore[attr-defined]
        "connector", "concat"
    )


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
    "--connector dragonfly --connector.inner": "--connector.inner needs a value",
    "--connector dragonfly --connector.inner percever": "unknown connector 'percever': did you mean perceiver?",
    "--connector dragonfly --connector.inner.num-latents 4": "unknown option --connector.inner.num-latents: "
    "connector.inner 'mlp' has --connector.inner.weights, --connector.inner.kind",
    "--connector dragonfly --connector.inner.knid linear": "unknown option --connector.inner.knid: did you mean "
    "--connector.inner.kind?",
    "--connector dragonfly --connector.iner mlp": "unknown option --connector.iner: did you mean --connector.inner?",
    "--connector dragonfly --connector.inner.kind round": "connector 'mlp', option 'kind': 'round' is none of",
    "--connector dragonfly --connector.pool 0": "connector 'dragonfly': --connector.pool must be at least 1",
    "--connector.inner perceiver": "unknown option --connector.inner: connector 'mlp' has --connector.",
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


CONNECTORS = ", ".join(sorted({plugin.name for plugin in available("connector")}))


def test_help_lists_the_options_of_the_chosen_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--connector perceiver --help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())  # however the lines are broken
    assert stop.value.code == 0
    for expected in (
        "--connector.num-latents",
        "--encoder.width",
        "--row-tokens",
        CONNECTORS,
        "Visual tokens per crop",
    ):
        assert expected in shown


@dataclass
class Group:
    few: int = 2
    """How many."""


@dataclass
class Odd:
    """Options as somebody else may write them."""

    name: str
    """What it is
    of."""
    group: Group = field(default_factory=Group)
    other: Group | None = None
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.group.few


def test_help_is_in_paragraphs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever the source breaks a text into lines, and however deep its group of options is."""
    monkeypatch.setenv("COLUMNS", "3000")
    with pytest.raises(SystemExit):
        run("--connector dragonfly --connector.inner perceiver --help")
    lines = capsys.readouterr().out.splitlines()
    inner = describe.texts(type(choose("connector", "perceiver").config))["num_latents"]
    texts = [*describe.texts(RunOptions).values(), *describe.texts(DataConfig).values(), inner]
    texts = [text for text in texts if len(text) < 200]  # wider, tyro makes no line
    assert sum(len(text) > 120 for text in texts) > 5, "which the source has in two lines"
    for text in texts:
        assert any(text in line for line in lines), text
    with pytest.raises(SystemExit):
        run("--encoder a=tiny b=tiny --help")
    assert "--encoder.b.width" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse(Odd, ["--help"], "odd")
    assert "What it is of" in (told := capsys.readouterr().out) and "--group.few INT" in told and "--total" not in told
    assert not any("_ArgConfig" in line or "RunOptions(" in line for line in lines), "no text of dataclass's own"


def test_help_lists_the_options_of_held_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--connector dragonfly --connector.inner perceiver --help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for expected in (
        f"--connector.inner STR A connector: {CONNECTORS}. (default: perceiver)",
        "--connector.inner.num-latents INT Visual tokens per crop",
        "--connector.pool INT Side of a pooling window in tokens. (default: 4)",
    ):
        assert expected in shown


def test_a_part_is_shown_with_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plugins", "show", "connector", "dragonfly"])
    shown = capsys.readouterr().out
    assert "  --connector.inner connector, by default 'mlp'\n      " in shown
    assert shown.index("References:") < shown.index("--connector.inner")


def test_commands_with_required_options_say_which() -> None:
    with pytest.raises(BeniError, match=r"^--model is required: Folder of a saved model"):
        parse(EvaluateOptions, [], "evaluate")
    with pytest.raises(BeniError, match=r"^unknown option --modle: did you mean --model\?"):
        parse(EvaluateOptions, ["--modle", "x"], "evaluate")
    assert parse(EvaluateOptions, ["--model", "x", "--blind"], "evaluate").blind


@pytest.mark.parametrize(
    ("options", "line", "said"),
    [
        (EvaluateOptions, "runs/a/model", "unexpected 'runs/a/model': did you mean --model runs/a/model?"),
        (EvaluateOptions, "--model a b", "unexpected 'b' behind --model a (--help lists all options)"),
        (GenerateOptions, "--model a --image b what", "--prompt is required: The question; "),
        (EvaluateOptions, "--model=a b", "unexpected 'b' behind --model=a (--help lists all options)"),
        (EvaluateOptions, "-m a", "unexpected '-m' (--help lists all options)"),
        (ChatOptions, "--model runs/a/model", "--model is no option here: write runs/a/model by itself"),
        (ExportOptions, "--model a --to llava --out b", "--model is no option here: write a by itself"),
        (ExportOptions, "--to llava --out b", "MODEL is required: Folder of a saved model (RUN/model)."),
        (ExportOptions, "a --out b", "--to is required: The class's family: "),
    ],
)
def test_what_has_a_name_and_what_has_none(options: type, line: str, said: str) -> None:
    with pytest.raises(BeniError) as caught:
        parse(options, shlex.split(line), "beni command")
    assert str(caught.value).startswith(said)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"beni {beni.__version__}\n"
