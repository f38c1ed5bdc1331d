"""Blocks of code in a page, and what a comment above one says about it.

<!-- run: --steps 2 -->        its commands get these options, too, in the test alone
<!-- run until: words -->      it does not end by itself, and is ended when it has printed this
<!-- not run: why -->          it needs what a test has not
<!-- file: my/part.py -->      it is written to this file
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(
    r"(?:^<!-- (file|run until|run|not run): (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Block:
    """A block between fences."""

    language: str
    text: str
    line: int
    """Of its opening fence."""
    mark: str = ""
    """Kind of the comment above it: file, run, not run; empty if there is none."""
    said: str = ""
    """What the comment says."""


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [
        Block(found[3], found[4], text.count("\n", 0, found.start(3)) + 1, found[1] or "", found[2] or "")
        for found in BLOCK.finditer(text)
    ]
