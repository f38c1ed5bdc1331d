"""Which combinations a command line asks for."""

import pytest

from beni.bench.grid import combinations, installed, spelled
from beni.registry import available


@pytest.mark.parametrize(
    ("words", "models", "rest"),
    [
        ("--steps 3", [""], "--steps 3"),
        ("--connector mlp", ["--connector mlp"], ""),
        (
            "--connector mlp perceiver --rows 2 --fusion inline xattn",
            [
                "--connector mlp --fusion inline",
                "--connector mlp --fusion xattn",
                "--connector perceiver --fusion inline",
                "--connector perceiver --fusion xattn",
            ],
            "--rows 2",
        ),
        ("--connector=mlp --connector perceiver", ["--connector mlp", "--connector perceiver"], ""),
        ("--encoder a=tiny b=tiny", ["--encoder a=tiny b=tiny"], ""),
        ("--encoder tiny --encoder timm:x", ["--encoder tiny", "--encoder timm:x"], ""),
        ("--connector.kind linear --llm tiny", ["--llm tiny"], "--connector.kind linear"),
        ("--connector", ["--connector"], ""),  # what is missing is told where options are read
    ],
)
def test_several_names_are_several_models(words: str, models: list[str], rest: str) -> None:
    found, left = combinations(words.split())
    assert [" ".join(spelled(each)) for each in found] == models and " ".join(left) == rest


def test_all_of_them() -> None:
    connectors, fusions = installed("connector"), installed("fusion")
    assert {"mlp", "perceiver", "sva"} <= set(connectors) and len(fusions) >= 4
    found, _ = combinations(["--rows", "2"], every=True)
    assert len(found) == len(connectors) * len(fusions)
    found, _ = combinations(["--connector", "mlp"], every=True)
    assert [each["fusion"] for each in found] == [[name] for name in fusions]


def test_what_is_broken_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from beni.errors import PluginError

    plugin = type(next(iter(available("view"))))

    def load(self: object) -> type:
        raise PluginError("broken")

    monkeypatch.setattr(plugin, "load", load)
    assert installed("view") == []
