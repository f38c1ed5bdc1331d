"""Braces stand for what they stand for in a shell."""

import pytest

from beni.data.braces import expand

GOLDEN = {
    "a.tar": ["a.tar"],
    "s/{08..11}.tar": ["s/08.tar", "s/09.tar", "s/10.tar", "s/11.tar"],
    "{8..10}": ["8", "9", "10"],
    "{000..2}": ["000", "001", "002"],
    "{3..1}": ["3", "2", "1"],
    "{0..7..3}": ["0", "3", "6"],
    "{a..c}{x,y}": ["ax", "ay", "bx", "by", "cx", "cy"],
    "{c..a}": ["c", "b", "a"],
    "{train,val-{0..1}}.tar": ["train.tar", "val-0.tar", "val-1.tar"],
    "{a,}b": ["ab", "b"],
    "{a}{0..1": ["{a}{0..1"],
    "{x{0..1}}": ["{x0}", "{x1}"],
}
"""What the package `webdataset` makes of these, but for a brace that is not closed, which it refuses."""


@pytest.mark.parametrize("pattern", GOLDEN)
def test_names(pattern: str) -> None:
    assert list(expand(pattern)) == GOLDEN[pattern]
