"""Small talkers, and pictures in files."""

from pathlib import Path

from PIL import Image

from beni.chat.talker import Talker
from beni.data.images import load_image
from beni.sample import ImageRef
from tests.model.small import make
from tests.model.test_saved import save


def talker(parts: str, **tables: dict[str, object]) -> Talker:
    """A small model of these parts."""
    built = make(parts, **tables)
    built.model.eval()
    return Talker(parts, built.model, built.composer)


def saved(parts: str, folder: Path) -> str:
    """The folder of a small saved model, as a run leaves it."""
    return str(save(make(parts), folder / parts / "model"))


def in_file(ref: ImageRef, path: Path) -> ImageRef:
    """The same picture as a file."""
    picture: Image.Image = load_image(ref)
    picture.save(path)
    return ImageRef(path=str(path))
