"""What tests of encoders share; what every encoder promises is in `beni.testing`."""

from pathlib import Path

from beni.testing import assert_keeps_promises, crops

__all__ = ["assert_keeps_promises", "crops", "text_of"]


def text_of(folder: Path) -> str:
    """Everything readable in a saved model."""
    return "".join(file.read_text(encoding="utf-8") for file in folder.iterdir() if file.suffix in (".json", ".jinja"))
