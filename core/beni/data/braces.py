"""Many names in one, as shells write them."""

import re
from collections.abc import Iterator
from itertools import pairwise


def expand(pattern: str) -> Iterator[str]:
    """The names that braces stand for, as in a shell: `{00..12}`, `{0..12..3}`, `{c..a}`, `{a,b{1,2}}`."""
    for start in (number for number, letter in enumerate(pattern) if letter == "{"):
        depth, cuts = 0, [start]
        for end in range(start, len(pattern)):
            depth += {"{": 1, "}": -1}.get(pattern[end], 0)
            if not depth:
                break
            if depth == 1 and pattern[end] == ",":
                cuts.append(end)
        else:
            continue  # it is not closed
        inside = [pattern[a + 1 : b] for a, b in pairwise([*cuts, end])]
        choices = [each for part in inside for each in expand(part)] if inside[1:] else _range(inside[0])
        if choices:
            for choice in choices:
                yield from (pattern[:start] + choice + rest for rest in expand(pattern[end + 1 :]))
            return
    yield pattern


def _range(inside: str) -> list[str]:
    """`08..10` is 08, 09, 10; empty if it is no range."""
    if letters := re.fullmatch(r"([a-zA-Z])\.\.([a-zA-Z])", inside):
        first, last = map(ord, letters.groups())
        step = 1 if first <= last else -1
        return [chr(code) for code in range(first, last + step, step)]
    if not (numbers := re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?", inside)):
        return []
    first, last = int(numbers[1]), int(numbers[2])
    step = (int(numbers[3] or 1) or 1) * (1 if first <= last else -1)
    padded = any(re.match(r"-?0\d", text) for text in numbers.groups()[:2])
    width = max(len(numbers[1]), len(numbers[2])) if padded else 0
    return [f"{number:0{width}d}" for number in range(first, last + (1 if step > 0 else -1), step)]
