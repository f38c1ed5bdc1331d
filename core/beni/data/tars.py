"""What lies where in a tar: one pass over its headers, after which every file in it can be read by itself."""

import tarfile
from dataclasses import dataclass, field
from functools import cache
from io import FileIO
from itertools import accumulate
from pathlib import Path

import numpy as np

from beni.errors import DataError
from beni.sample import Span

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""How compressed files begin."""
BLOCK = 512
"""Bytes of a header, and of what the files in a tar are filled up to a multiple of."""
_AGAIN = "fetch or write it again"


@dataclass(frozen=True, slots=True)
class Index:
    """The files in a tar, in the order in which they lie there; three numbers and a name for each, and no more."""

    path: Path
    names: bytes = field(repr=False)
    """All of them in one."""
    places: np.ndarray = field(repr=False)
    """Of each where its name ends, its first byte and its length."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Span:
        end, start, length = self.places[number].tolist()
        return Span(self.names[self.places[number - 1, 0] if number else 0 : end].decode(), start, length)


def index_of(path: Path) -> Index:
    """Read all headers of a tar; once in a process, as long as the file does not change.

    Raises:
        DataError: missing, compressed, not a tar, cut off, damaged, empty, or with links or holes in it.
    """
    try:
        status = path.stat()
        return _index(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


@cache
def _index(path: Path, size: int, changed_ns: int) -> Index:
    with path.open("rb", buffering=0) as file:  # a buffer would read eight kilobytes for each header
        _check_beginning(path, file, size)
        spans: list[Span] = []
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="replace") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or it keeps a kilobyte for each
                    if member.isdir():
                        continue
                    if member.issparse() or not member.isreg():
                        raise DataError(
                            f"{path}: {member.name} is not a plain file but a link, a device or a file with holes: "
                            f"write the tar with --hard-dereference --dereference and without --sparse"
                        )
                    if member.offset_data + member.size > size:
                        raise DataError(
                            f"{path} was cut off: it ends at byte {size:,}, in the middle of {member.name}: {_AGAIN}"
                        )
                    spans.append(Span(member.name, member.offset_data, member.size))
                end = tar.offset
        except (tarfile.TarError, ValueError) as error:  # ValueError: numbers in extended headers
            if not spans:
                raise DataError(f"{path} is not a tar: {error}") from error
            raise DataError(f"{path} was cut off or damaged behind {spans[-1].name} ({error}): {_AGAIN}") from error
        _check_end(path, file, end, size)
    if not spans:
        raise DataError(f"{path} is an empty tar: there is no file in it")
    names = [span.name.encode() for span in spans]
    ends = accumulate(map(len, names))
    places = [(end, span.start, span.length) for end, span in zip(ends, spans, strict=True)]
    return Index(path, b"".join(names), np.array(places, dtype=np.int64))


def _check_beginning(path: Path, file: FileIO, size: int) -> None:
    if not size:
        raise DataError(f"{path} is an empty file: {_AGAIN}")
    begins = file.read(8)
    for mark, kind in COMPRESSED.items():
        if begins.startswith(mark):
            raise DataError(
                f"{path} is compressed ({kind}), and can only be read from its beginning on: unpack it to a .tar; "
                f"pictures in it are compressed as they are"
            )
    file.seek(0)


def _check_end(path: Path, file: FileIO, end: int, size: int) -> None:
    """The library takes whatever is no header for the end; only zeros are."""
    file.seek(end)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise DataError(f"{path} was cut off: it ends at byte {size:,}, and no end is marked there: {_AGAIN}")
    if block.strip(b"\0"):
        raise DataError(f"{path} is damaged: at byte {end:,} is neither a file nor the marked end: {_AGAIN}")
    while block:
        if block.strip(b"\0"):
            raise DataError(
                f"{path} goes on behind its end at byte {end:,}: tars that were joined are not read as one; name "
                f"them one by one"
            )
        block = file.read(1 << 20)
