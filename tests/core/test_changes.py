"""In which options runs differ: named as they are typed, and not too many."""

from typing import Any

from beni.changes import MOST, changed, nearest, spelled, told
from beni.config import run_config_from_dict


def options(**tables: dict[str, Any]) -> dict[str, str]:
    return dict(spelled(run_config_from_dict(tables).to_dict()))


def test_options_are_named_as_they_are_typed() -> None:
    before = options(connector={"name": "perceiver", "num_latents": 8}, data={"data": ["shapes", "easy_vqa"]})
    now = options(connector={"name": "perceiver", "num_latents": 16}, data={"data": ["shapes"]}, optim={"epochs": 5})
    assert told([before], [now]) == "--connector.num-latents 8, now 16; --data shapes easy_vqa, now shapes"
    assert told([before], [before]) == ""
    now = options(optim={"train": ["llm"], "part_lr": {"llm": 0.5}})
    assert told([options()], [now]) == "--part-lr none, now llm 0.5; --train none, now llm"


def test_another_part_is_named_without_its_options() -> None:
    held = {"name": "dragonfly", "inner": {"name": "perceiver"}}
    inner = {"name": "dragonfly", "inner": {"name": "mlp"}}
    assert changed(options(connector=held), options()) == ["--connector"]
    assert changed(options(connector=held), options(connector=inner)) == ["--connector.inner"]
    assert changed(
        options(encoders={"a": {"name": "tiny"}}), options(encoders={"a": {"name": "tiny", "size": 32}})
    ) == ["--encoder.a.size"]


def test_another_release_of_a_part_is_a_change() -> None:
    tables = run_config_from_dict({}).to_dict()
    tables["connector"]["origin"]["version"] = "0.0"
    assert told([spelled(tables)], [options()]).startswith(
        "--connector from beni 0.0 beni_plugins.connectors.mlp:Mlp, now beni "
    )


def test_some_are_named_and_the_rest_counted_and_long_values_cut() -> None:
    before, now = ({f"--{n}": f"{at} {'word ' * 40}{at}" for n in range(MOST + 3)} for at in "ab")
    said = told([before] * 2, [now] * 2)
    assert said.count(", now ") == MOST and said.endswith("; and 3 more") and len(said) < MOST * 150


def test_what_differs_at_the_end_of_a_long_value_differs() -> None:
    before, now = ({"--data": f"llava:/{'x' * 100}/{name}.json"} for name in "ab")
    assert told([before], [now]).count("/a.json") == 1 and told([before], [now]).endswith("xxx/b.json")


def test_what_several_runs_had_is_told_together() -> None:
    before = [{"--lr": "1", "--seed": "0"}, {"--lr": "2", "--seed": "0"}, {"--lr": "3", "--seed": "1"}]
    assert told(before, [{"--lr": "3", "--seed": "0"}] * 3) == "--lr 1 or 2, now 3; --seed 1, now 0"


def test_the_nearest_has_the_same_part() -> None:
    """Another part is one change in a message, and not near for that."""
    one = {name: value for name, value in options().items() if name != "--connector.kind"}
    assert nearest(one, [options(connector={"name": "concat"}), options()]) == options()
    assert told([one], [options()]) == "--connector.kind not there, now mlp2x_gelu"
