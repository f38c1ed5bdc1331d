"""All of beni's connectors, fusions and views with each other; the documented table is what they do."""

import pytest

from tests.model.cube import PAGE, Outcome, built_in, combine, page


@pytest.mark.slow
def test_every_combination_works_or_is_refused() -> None:
    outcomes = [combine(parts) for parts in built_in()]
    working = [outcome.parts for outcome in outcomes if not outcome.refusal]
    for position in range(3):
        names = {parts[position] for parts in built_in()}
        assert {parts[position] for parts in working} == names, "a part that works with nothing"
    assert page(outcomes) == PAGE.read_text(encoding="utf-8"), "run python -m tests.model.cube"


def test_refusals_are_numbered_once() -> None:
    outcomes = [Outcome(("a", "b", "c")), Outcome(("a", "b", "d"), "no"), Outcome(("a", "e", "c"), "no")]
    text = page([*outcomes, Outcome(("a", "e", "d"), "never")])
    assert "| `a` | `b` | yes | [1] |" in text and "| `a` | `e` | [1] | [2] |" in text
    assert text.endswith("1. no\n2. never\n")
