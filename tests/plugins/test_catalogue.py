"""The catalogue is what the parts say of themselves."""

from dataclasses import dataclass
from typing import Literal

from beni.cli.describe import about, options
from beni.config import PartConfig
from tests.plugins.catalogue import KINDS, PAGE, built_in, page


def test_the_page_is_what_the_parts_say() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run python -m tests.plugins.catalogue"


def test_every_part_and_option_says_what_it_does() -> None:
    for kind in KINDS:
        for plugin in built_in(kind):
            part = plugin.load()
            assert part.__doc__ and about(part), plugin
            silent = [option.name for option in options(part.Config) if not option.text]  # type: ignore[attr-defined]
            assert not silent, f"{kind} {plugin.name}: {silent}"


def test_texts_of_options_are_those_behind_them_also_of_base_classes() -> None:
    found = {option.name: option for option in options(Second)}
    assert list(found) == ["first", "second-one"]
    assert found["first"].text == "Said in the base class." and found["first"].default == "1"
    assert found["second-one"].text == "Of two lines." and found["second-one"].type == "a | b"


@dataclass(frozen=True)
class First(PartConfig):
    first: int = 1
    """Said in the base class."""


@dataclass(frozen=True)
class Second(First):
    second_one: Literal["a", "b"] = "a"
    """Of
    two lines."""
