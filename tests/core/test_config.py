"""Configurations survive JSON and TOML, and refuse what they do not know."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import pytest

from beni.config import (
    OPTION_GROUPS,
    OfKind,
    Part,
    PartConfig,
    RunConfig,
    choose,
    from_dict,
    held_parts,
    read_config_file,
    run_config_from_dict,
    to_dict,
)
from beni.errors import BeniError, ConfigError, PluginError
from beni.options import BatchConfig, DataConfig, OptimConfig

TABLES: dict[str, Any] = {
    "encoders": {"a": {"name": "tiny", "layers": 1, "size": 32}, "b": {"name": "tiny"}},
    "connector": {"name": "perceiver", "num_latents": 7, "variant": "idefics2"},
    "fusion": {"name": "xattn", "every": 2},
    "data": {"data": ["shapes?images=3", "easy_vqa"], "weights": [1, 0.5]},
    "optim": {"lr": 0.25, "train": ["connector"]},
    "run": {"seed": 3, "out": "here"},
}


def test_round_trip_through_json() -> None:
    config = run_config_from_dict(TABLES)
    again = run_config_from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert config.encoders["a"].config.layers == 1  # type: ignore[attr-defined]
    assert config.connector.config.num_latents == 7  # type: ignore[attr-defined]
    assert config.data.weights == (1.0, 0.5) and config.optim.epochs == OptimConfig().epochs


def test_what_a_run_records_can_be_run_again() -> None:
    """config.json also says which weights were loaded; that decides nothing."""
    config = run_config_from_dict(TABLES)
    assert run_config_from_dict(config.to_dict() | {"loaded": {"llm": {"origin": "x", "sha256": ""}}}) == config


def test_toml_and_json_files_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"connector": {"name": "perceiver", "num_latents": 7}, "run": {"seed": 3}})
    )
    (tmp_path / "a.toml").write_text('[connector]\nname = "perceiver"\nnum_latents = 7\n[run]\nseed = 3\n')
    one, other = (run_config_from_dict(read_config_file(tmp_path / f"a.{kind}")) for kind in ("json", "toml"))
    assert one == other


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"conector": {"name": "mlp"}}, r"no table \[conector\]: did you mean \[connector\]\?"),
        ({"encoder": {"name": "tiny"}}, r"did you mean \[encoders\]\?"),
        (
            {"connector": {"name": "perceiver", "latents": 3}},
            "connector 'perceiver' has no option 'latents': did you mean 'num_latents'",
        ),
        ({"data": {"workerz": 1}}, r"table \[data\] has no option 'workerz': did you mean 'workers'"),
        ({"connector": "mlp"}, "connector 'mlp' is not a table"),
        ({"connector": {"num_latents": 3}}, "connector has no 'name'"),
        ({"encoders": {}}, r"\[encoders\.main\]"),
        ({"encoders": {"name": "tiny"}}, "encoder 'tiny' is not a table"),
        ({"data": 3}, r"table \[data\] is 3, not a table"),
        ({"data": {"data": "easy_vqa"}}, r"table \[data\], option 'data': should be a valid array, not 'easy_vqa'"),
        ({"batch": {"rows": True}}, "option 'rows': should be a valid integer, not True"),
        ({"batch": {"rows": "2"}}, "option 'rows': should be a valid integer, not '2'"),
        ({"batch": {"order": "size"}}, "option 'order': should be 'shuffled', 'length' or 'modality', not 'size'"),
        ({"batch": {"rows": 2.5}}, "option 'rows': should be a valid integer"),
        ({"optim": {"lr": "fast"}}, "option 'lr': should be a valid number, not 'fast'"),
        ({"optim": {"lr": False}}, "option 'lr': should be a valid number, not False"),
        ({"run": {"dry_run": 1}}, "option 'dry_run': should be a valid boolean"),
        ({"run": {"dtype": "fp64"}}, "option 'dtype': should be 'auto', 'fp32' or 'bf16', not 'fp64'"),
        ({"connector": {"name": "nobody"}}, "unknown connector 'nobody'"),
        (
            {"connector": {"name": "dragonfly", "inner": {"name": "perciever"}}},
            "connector 'dragonfly', option 'inner': unknown connector 'perciever': did you mean perceiver",
        ),
        (
            {"connector": {"name": "dragonfly", "inner": {"name": "perceiver", "latents": 3}}},
            "option 'inner': connector 'perceiver' has no option 'latents': did you mean 'num_latents'",
        ),
        ({"connector": {"name": "dragonfly", "inner": "mlp"}}, "option 'inner': connector 'mlp' is not a table"),
        ({"connector": {"name": "dragonfly", "inner": {"kind": "linear"}}}, "option 'inner': .*has no 'name'"),
    ],
)
def test_mistakes_in_tables_are_one_line(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(BeniError, match=said) as caught:
        run_config_from_dict(tables)
    assert "\n" not in str(caught.value)


def test_values_that_are_spelled_may_be_strings() -> None:
    """Options behind a data spec's question mark are text."""
    assert choose("source", "shapes", {"size": "80"}, spelled=True).config.size == 80  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"source 'shapes', option 'size'.*not 'large'"):
        choose("source", "shapes", {"size": "large"}, spelled=True)
    with pytest.raises(ConfigError, match="should be a valid integer, not '80'"):
        choose("source", "shapes", {"size": "80"})


def test_whole_numbers_are_floats_but_not_the_reverse() -> None:
    assert from_dict(OptimConfig, {"lr": 1}, "here").lr == 1.0


@pytest.mark.parametrize(
    ("cls", "values", "said"),
    [
        (BatchConfig, {"rows": 0}, "'rows' is 0; it must be at least 1"),
        (OptimConfig, {"epochs": -1.0}, "'epochs' is -1.0; it must be more than 0"),
        (OptimConfig, {"samples": -1}, "'samples' is -1; it must be at least 0"),
        (OptimConfig, {"flops": float("inf")}, "'flops' is inf"),
        (OptimConfig, {"steps": 4, "samples": 99}, "options 'steps' 4 and 'samples' 99 each say how long"),
        (OptimConfig, {"samples": 99, "flops": 2e9}, "options 'samples' 99 and 'flops' 2000000000.0 each say how long"),
        (OptimConfig, {"steps": 4, "flops": 1e18}, r"options 'steps' 4 and 'flops' 1e\+18 each say how long"),
        (OptimConfig, {"warmup": 2.0}, "from 0 to 1"),
        (OptimConfig, {"lr": float("nan")}, "'lr' is nan"),
        (DataConfig, {"data": ()}, "'data' is empty"),
        (DataConfig, {"eval_batch": 0}, "'eval_batch' is 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(cls: type, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cls(**values)


def test_the_training_hash_says_what_is_learned() -> None:
    def changed(table: str, **values: Any) -> str:
        return run_config_from_dict(TABLES | {table: TABLES.get(table, {}) | values}).training_hash()

    same = run_config_from_dict(TABLES).training_hash()
    assert same == run_config_from_dict(json.loads(json.dumps(run_config_from_dict(TABLES).to_dict()))).training_hash()
    for option in ({"out": "there"}, {"device": "cpu"}, {"log_every": 3}, {"checkpoint_every": 9}):
        assert changed("run", **option) == same
    assert changed("data", workers=0) == changed("data", eval_limit=5) == same
    different = [
        changed("run", seed=4),
        changed("optim", lr=0.5),
        changed("connector", num_latents=8),
        changed("data", weights=[1, 2]),
        changed("batch", rows=4),
        changed("batch", order="length"),
        changed("data", data=["shapes?images=3&loss_weight=0.5", "easy_vqa"]),
    ]
    assert len({same, *different}) == 8


def test_whole_defaults_of_floats_do_not_change_the_hash(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(
        "from dataclasses import dataclass\nfrom beni.config import PartConfig\n"
        "@dataclass(frozen=True, slots=True)\nclass PC(PartConfig):\n    x: float = 1\n"
        "class Part:\n    beni_api = 1\n    Config = PC\n"
    )
    config = run_config_from_dict({"view": {"name": f"{tmp_path / 'part.py'}:Part"}})
    again = run_config_from_dict(config.to_dict())
    assert again.training_hash() == config.training_hash()


HOLDING = {"name": "dragonfly", "pool": 2, "inner": {"name": "perceiver", "num_latents": 7}}


def test_a_part_that_holds_a_part_survives(tmp_path: Path) -> None:
    config = run_config_from_dict({"connector": HOLDING})
    held = config.connector.config.inner  # type: ignore[attr-defined]
    assert held == choose("connector", "perceiver", {"num_latents": 7})
    table = config.to_dict()["connector"]
    assert table["inner"] == held.to_dict() and table["inner"]["origin"]["distribution"] == "beni"
    assert run_config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    (tmp_path / "a.toml").write_text(
        '[connector]\nname = "dragonfly"\npool = 2\n[connector.inner]\nname = "perceiver"\nnum_latents = 7\n'
    )
    assert run_config_from_dict(read_config_file(tmp_path / "a.toml")) == config
    other = HOLDING | {"inner": {"name": "perceiver", "num_latents": 8}}
    assert run_config_from_dict({"connector": other}).training_hash() != config.training_hash()


def test_held_parts_are_found_in_any_config() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Two(PartConfig):
        first: Annotated[Part, OfKind("view")]
        number: int = 3
        second: "Annotated[Part, OfKind('view')]" = dataclasses.field(default_factory=lambda: choose("view", "single"))

    assert held_parts(Two) == {"first": "view", "second": "view"}
    assert held_parts(OptimConfig) == {}
    two = Two(choose("view", "split", {"tiles": 3}), 4)
    assert to_dict(two)["first"]["tiles"] == 3 and from_dict(Two, to_dict(two), "here") == two


def test_what_stands_behind_a_colon() -> None:
    assert choose("encoder", "timm:resnet18").config.model == "resnet18"  # type: ignore[attr-defined]
    assert choose("encoder", "timm:resnet18", {"model": "other"}).config.model == "other"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="takes nothing behind a colon: write 'tiny' instead of 'tiny:x'"):
        choose("encoder", "tiny:x")


def test_an_llm_is_a_name_a_hub_id_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("tiny", "model"):
        (tmp_path / folder).mkdir()
    named = {name: choose("llm", name) for name in ("owner/name", "model", "hf:gpt2", str(tmp_path / "model"))}
    assert [part.config.model for part in named.values()] == ["owner/name", "model", "gpt2", str(tmp_path / "model")]  # type: ignore[attr-defined]
    assert choose("llm", "tiny").plugin.name == "tiny"  # a registered name, whatever folders there are


def test_a_part_must_declare_its_options(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("class Part:\n    beni_api = 1\n")
    with pytest.raises(PluginError, match="has no `Config`"):
        choose("connector", f"{tmp_path / 'bare.py'}:Part")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", b"[connector]\nname=\n", "a.toml is not valid TOML: .*line 2"),
        ("a.json", b'{"connector": ', "a.json is not valid JSON: .*line 1"),
        ("a.json", b"[1]", "a.json holds a list"),
        ("a.toml", b"\xff\xfe", "a.toml is not valid TOML"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_config_file(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="there is no configuration file"):
        read_config_file(tmp_path / "gone.toml")


def test_every_option_is_documented_by_its_group() -> None:
    names = [field.name for group in OPTION_GROUPS.values() for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))  # they share one level of the command line


@pytest.mark.parametrize(
    ("table", "option", "value"), [("data", "stream_block", 99), ("optim", "samples", 99), ("optim", "flops", 1e9)]
)
def test_options_that_came_later_leave_the_hash_of_older_checkpoints(
    monkeypatch: pytest.MonkeyPatch, table: str, option: str, value: float
) -> None:
    """A run continues whose checkpoint was made when the option was not there; another value is another run."""
    config = run_config_from_dict(TABLES)
    other = run_config_from_dict({**TABLES, table: {**TABLES[table], option: value}})
    written = RunConfig.to_dict

    def before(self: RunConfig) -> dict[str, Any]:
        tables = written(self)
        del tables[table][option]
        return tables

    now, changed = config.training_hash(), other.training_hash()
    monkeypatch.setattr(RunConfig, "to_dict", before)
    assert now == config.training_hash() != changed
