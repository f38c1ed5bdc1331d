"""One pass over the headers finds every file of a tar, or says what is wrong with it, and where."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from beni.data.spans import read_span
from beni.data.tars import index_of
from beni.errors import DataError
from tests.conftest import write_tar

FILES = {"a.png": b"a picture", "a.txt": b"its caption", "b.png": b"another", "b.txt": b"and its"}
"""Headers at 0, 1024, 2048 and 3072, each file behind its own; the end is marked at 4096."""


def contents(path: Path) -> dict[str, bytes]:
    index = index_of(path)
    return {index[n].name: read_span(path, index[n]) for n in range(len(index))}


def add(path: Path, name: str, data: bytes = b"", form: int = tarfile.PAX_FORMAT, **fields: object) -> None:
    with tarfile.open(path, "a", format=form, encoding="utf-8") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_file_is_where_the_index_says(tmp_path: Path, form: int) -> None:
    """Also those with long names, and behind folders; nothing of a pax header is taken for a file."""
    path = write_tar(tmp_path / "s.tar", FILES)
    long = "/".join(["folder" * 5] * (2 if form == tarfile.USTAR_FORMAT else 9)) + "/ключ.txt"
    add(path, "folder.d", form=form, type=tarfile.DIRTYPE)
    add(path, long, b"long" * 1000, form, pax_headers={"comment": "x" * 2000})
    add(path, "empty.txt", b"", form)
    assert contents(path) == FILES | {long: b"long" * 1000, "empty.txt": b""}


def test_a_tar_is_read_once_and_again_when_it_was_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "s.tar", FILES)
    opened: list[object] = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *_, **options: opened.append(1) or real(**options))
    assert contents(path) == contents(path) == FILES and len(opened) == 1
    monkeypatch.undo()
    write_tar(path, {"c.txt": b"new"})
    assert contents(path) == {"c.txt": b"new"}


def gzipped(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))


def sparse(path: Path) -> None:
    """In the form of version 0.1."""
    add(path, "c.txt", b"x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"})


def cut(at: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, at)


def patched(at: int, data: bytes) -> Callable[[Path], None]:
    def patch(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    return patch


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut in its first header": (cut(100), " is not a tar: truncated header"),
    "cut in the first file": (cut(515), " was cut off: it ends at byte 515, in the middle of a.png: fetch or write"),
    "cut in the last file": (cut(3585), " was cut off: it ends at byte 3,585, in the middle of b.txt"),
    "cut behind the last file": (cut(3600), " was cut off or damaged behind b.txt (unexpected end of data): fetch"),
    "cut in a header": (cut(3100), " was cut off: it ends at byte 3,100, and no end is marked there"),
    "cut between files": (cut(2048), " was cut off: it ends at byte 2,048, and no end is marked there"),
    "damaged": (patched(2048, b"!"), " is damaged: at byte 2,048 is neither a file nor the marked end"),
    "nothing": (cut(0), " is an empty file: fetch or write it again"),
    "no files": (lambda path: write_tar(path, {}), " is an empty tar: there is no file in it"),
    "no tar": (lambda path: path.write_bytes(b"x" * 5000), " is not a tar: "),
    "compressed": (gzipped, " is compressed (gzip), and can only be read from its beginning on: unpack it to a .tar"),
    "joined": (lambda path: path.write_bytes(path.read_bytes() * 2), " goes on behind its end at byte 4,096"),
    "a link": (lambda path: add(path, "c", type=tarfile.LNKTYPE, linkname="a.txt"), ": c is not a plain file but a"),
    "holes": (sparse, ": c.txt is not a plain file but a link, a device or a file with holes"),
    "gone": (Path.unlink, "there is no file "),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), " cannot be read: Is a directory"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_with_a_tar_is_told(tmp_path: Path, kind: str) -> None:
    path = write_tar(tmp_path / "s.tar", FILES)
    assert contents(path) == FILES
    spoil, said = BROKEN[kind]
    spoil(path)
    with pytest.raises(DataError) as caught:
        index_of(path)
    told = str(caught.value)
    assert told.startswith(f"{said}{path}" if kind == "gone" else f"{path}{said}") and "\n" not in told
