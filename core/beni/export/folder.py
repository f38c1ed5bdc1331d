"""A folder that appears whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from beni.errors import ConfigError, NotWritten, first_line


@contextmanager
def whole(out: str) -> Iterator[Path]:
    """A new folder beside `out` to write to, which becomes `out` where the block ends well and is removed otherwise.

    Args:
        out: a folder that does not exist yet, or is empty; folders above it are made, and stay if it ends well.

    Raises:
        ConfigError: there is something at `out`.
        NotWritten: a folder cannot be made or moved.
    """
    path = Path(out).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--out {out}: there is something already; name a folder that is new or empty")
    made = [folder for folder in path.parents if not folder.exists()]
    scratch = path.parent / f".{path.name}-{uuid4().hex[:8]}"
    try:
        with writing(out):
            scratch.mkdir(parents=True)
        yield scratch
        with writing(out):
            if path.exists():
                path.rmdir()
            scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:  # the deepest first; somebody else may have put something there meanwhile
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Inside, something is written for `out`.

    Raises:
        NotWritten: it cannot be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise NotWritten(f"the exported model cannot be written to {out}: {why}") from error
