"""The table of parts says what each one is."""

from beni.config import run_config_from_dict
from beni.report.parts import parts_of


def test_a_held_part_is_shown_by_name_with_its_options() -> None:
    table = {"name": "dragonfly", "pool": 2, "inner": {"name": "perceiver", "num_latents": 7}}
    config = run_config_from_dict({"connector": table, "view": {"name": "pyramid", "medium": ["2x2", "1x2"]}}).to_dict()
    rows = {row.kind: dict(row.options) for row in parts_of(config, {})}
    options = rows["connector"]
    assert (options["pool"], options["inner"], options["inner.num_latents"]) == ("2", "perceiver", "7")
    assert not any("origin" in key or "{" in value for key, value in options.items())
    assert rows["view"]["medium"] == "2x2, 1x2"
