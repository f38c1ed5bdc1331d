"""Checkpoints that lie in a folder: which there are, which one a pointer names, and whether they are whole."""

import hashlib
import json
import re
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch

from beni.errors import CheckpointError
from beni.weights import sha256

STATE = "state.json"
LATEST, BEST = "latest", "best"
"""Files that name a checkpoint: the newest, and the one with the lowest validation loss."""


def latest(folder: Path) -> Path | None:
    """The newest committed checkpoint of a run, or None."""
    return named(folder, LATEST)


def named(folder: Path, pointer: str) -> Path | None:
    """The checkpoint that a pointer names, or None.

    Raises:
        CheckpointError: the pointer is damaged.
    """
    words = _words(folder, pointer)
    return folder / words[0] if words else None


def lowest_loss(folder: Path, steps: int) -> float:
    """Validation loss of the best checkpoint among those made up to a step, or infinity."""
    best = named(folder, BEST)
    if best is None or steps_of(best) > steps:
        return inf
    return float(_words(folder, BEST)[1])


def _words(folder: Path, pointer: str) -> list[str]:
    """What a pointer holds, checked: a checkpoint that is there, and behind the best one its loss."""
    file = folder / pointer
    if not file.is_file():
        return []
    text = file.read_text(errors="replace")
    number = r"(-?\d\S*|inf|nan)"
    formed = re.fullmatch(r"step-\d{8}" + (f" {number}" if pointer == BEST else ""), text.strip())
    if formed and (folder / text.split()[0]).is_dir():
        return text.split()
    made = sorted(path.name for path in folder.glob("step-*"))
    hint = f": continue from {made[-1]} with --resume {folder / made[-1]}" if made and pointer == LATEST else ""
    raise CheckpointError(f"{file} is damaged, it names no checkpoint that is there: {text[:40]!r}{hint}")


def steps_of(checkpoint: Path) -> int:
    """Of a committed checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def computed_in(path: Path) -> torch.dtype | None:
    """In which precision the run of a checkpoint is computed; None where that cannot be read (`verify` says why)."""
    try:
        name = json.loads((path / STATE).read_text())["facts"]["required"]["dtype"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return {"torch.float32": torch.float32, "torch.bfloat16": torch.bfloat16}.get(name)


def verify(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state and compare every file with its checksum.

    Raises:
        CheckpointError: names the damaged file, and the newest checkpoint that is whole, if possible an older one.
    """
    try:
        return _verified(path)
    except CheckpointError as error:
        others = [other for other in path.parent.glob("step-*") if other != path]
        for other in sorted(others, key=lambda other: (other.name < path.name, other.name), reverse=True):
            if _is_whole(other):
                raise CheckpointError(f"{error}; continue from {other.name} with --resume {other}") from error
        raise


def _is_whole(path: Path) -> bool:
    try:
        _verified(path)
    except CheckpointError:
        return False
    return True


def _verified(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE).read_text())
        known = {name: state.pop(name) for name in ("position", "facts", "files")}
        sound = state.get("checksum", checksum(known)) == checksum(known) and state.keys() <= {"checksum"}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint: {STATE} is missing or damaged") from error
    if not sound:
        raise CheckpointError(f"checkpoint {path} is damaged: {STATE} has changed")
    for name, expected in known["files"].items():
        file = path / name
        if not file.is_file() or sha256(file) != expected:
            what = "has changed" if file.is_file() else "is missing"
            raise CheckpointError(f"checkpoint {path} is damaged: {name} {what}")
    return known


def checksum(state: Mapping[str, Any]) -> str:
    """Of what a state holds, for itself."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
