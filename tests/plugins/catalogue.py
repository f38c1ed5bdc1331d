"""What beni brings, part by part: `python -m tests.plugins.catalogue` writes docs/catalogue.md."""

from pathlib import Path

from beni.cli.describe import Option, about, options
from beni.registry import GROUPS, Plugin, available

PAGE = Path(__file__).parents[2] / "docs" / "catalogue.md"
KINDS = {
    "encoder": "Encoders: pictures to features",
    "connector": "Connectors: features to visual tokens",
    "fusion": "Fusions: how visual tokens meet the language model",
    "view": "Views: how a picture is cut",
    "llm": "Language models",
    "source": "Sources of data",
}
HEAD = """\
# The parts

Written by `python -m tests.plugins.catalogue` from the parts themselves; `beni plugins show KIND NAME` shows the same
of one, also of one of yours. [compatibility.md](compatibility.md) has which go together.
"""


def built_in(kind: str) -> list[Plugin]:
    """The parts of a kind that come with beni, by name."""
    return sorted((each for each in available(kind) if each.target.startswith("beni_plugins.")), key=lambda p: p.name)


def page() -> str:
    """The catalogue as Markdown."""
    assert KINDS.keys() == GROUPS.keys()
    return "\n".join([HEAD, *(_chapter(kind, title) for kind, title in KINDS.items())])


def _chapter(kind: str, title: str) -> str:
    return "\n".join([f"## {title}\n", *(_part(kind, plugin) for plugin in built_in(kind))])


def _part(kind: str, plugin: Plugin) -> str:
    part = plugin.load()
    prefix = "" if kind == "source" else f"--{kind}."
    rows = [_row(option, prefix) for option in options(part.Config)]  # type: ignore[attr-defined]
    table = ["| option | | by default |", "|---|---|---|", *rows, ""] if rows else []
    return "\n".join([f"### `{plugin.name}`\n", about(part), "", *table])


def _row(option: Option, prefix: str) -> str:
    text = f"{option.text} *({option.type})*" if option.text else f"*({option.type})*"
    cells = (f"`{prefix}{option.name}`", text, f"`{option.default}`")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
