"""A stretch of a file is read as a file of its own: from any place, by anybody, and no byte beyond it."""

import os
import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from beni.data.images import image_size, load_image
from beni.data.spans import open_span, read_span
from beni.errors import DataError, ImageError
from beni.sample import ImageRef, Span
from tests.conftest import MakePicture


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.Random(0).randbytes(100_000))
    return path


def test_it_reads_as_a_file_of_its_bytes(file: Path) -> None:
    span = Span("x", 1234, 50_000)
    data = file.read_bytes()[1234 : 1234 + 50_000]
    rng = random.Random(1)
    assert read_span(file, span) == data
    with open_span(file, span) as window:
        for _ in range(50):
            at, count = rng.randrange(60_000), rng.randrange(20_000)
            assert window.seek(at) == at and window.read(count) == data[at : at + count]
        assert window.seek(-10, os.SEEK_END) == 49_990 and window.read() == data[-10:]
        assert window.seek(100) and window.seek(5, os.SEEK_CUR) == 105 == window.tell()
        descriptor = window.raw.descriptor
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_what_cannot_be_read_is_told(file: Path) -> None:
    with pytest.raises(DataError, match="file was cut off: it ends 10 bytes before the end of x"):
        read_span(file, Span("x", 99_990, 20))
    with pytest.raises(DataError, match=r"there is no file .*gone"):
        read_span(file.parent / "gone", Span("x", 0, 1))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_span(file.parent, Span("x", 0, 1))


def inside(picture: ImageRef, path: Path, before: int) -> ImageRef:
    path.write_bytes(b"\0" * before + picture.data + b"\0" * 1000)
    return ImageRef(path=str(path), span=Span("in/a.png", before, len(picture.data)))


def look(ref: ImageRef) -> tuple[tuple[int, int], bytes]:
    return tuple(image_size(ref)), load_image(ref).tobytes()  # type: ignore[return-value]


def test_an_image_inside_a_file_is_the_image(picture: MakePicture, tmp_path: Path) -> None:
    """In another process, too."""
    one = inside(picture(1, (30, 20)), tmp_path / "one", 700)
    other = inside(picture(2, (10, 20)), tmp_path / "one.tar", 900)
    assert look(one) == ((30, 20), load_image(picture(1, (30, 20))).tobytes())
    assert look(pickle.loads(pickle.dumps(other))) == ((10, 20), load_image(picture(2, (10, 20))).tobytes())
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(look, one).result() == look(one)


def test_images_of_one_file_are_told_apart(picture: MakePicture, tmp_path: Path) -> None:
    first = inside(picture(1, (30, 20)), tmp_path / "two", 10)
    data = first.path and Path(first.path).read_bytes()
    assert isinstance(data, bytes)
    Path(first.path).write_bytes(data + picture(2, (10, 20)).data)
    second = ImageRef(path=first.path, span=Span("in/a.png", len(data), len(picture(2, (10, 20)).data)))
    assert first.key != second.key != first.path and first.name == f"{first.path}: in/a.png"
    assert (image_size(first), image_size(second)) == ((30, 20), (10, 20))
    assert first.key == ImageRef(path=first.path, span=first.span).key


def test_what_is_wrong_with_an_image_is_told_by_both_names(picture: MakePicture, tmp_path: Path) -> None:
    ref = inside(picture(3), tmp_path / "a.tar", 100)
    assert ref.span is not None
    whole = Path(ref.path).read_bytes()
    for content, said in (
        (whole[: 100 + ref.span.length // 2], f"image {ref.name} is damaged: "),
        (b"\0" * len(whole), f"image {ref.name} is not in any image format"),
    ):
        Path(ref.path).write_bytes(content)
        with pytest.raises(ImageError) as caught:
            load_image(ref)
        assert str(caught.value).startswith(said) and "a.tar: in/a.png" in said
    Path(ref.path).unlink()
    with pytest.raises(ImageError, match=r"there is no image .*a\.tar: in/a\.png"):
        load_image(ref)
    with pytest.raises(DataError, match="image x is a stretch of a file, and no path says of which"):
        ImageRef(url="http://host/a", span=Span("x", 0, 1))


def test_a_size_takes_only_the_header(tmp_path: Path, picture: MakePicture, monkeypatch: pytest.MonkeyPatch) -> None:
    big = inside(picture(4, (400, 300)), tmp_path / "big", 512)
    counts: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, at: counts.append(count) or pread(file, count, at))
    assert image_size(big) == (400, 300)
    assert big.span is not None and sum(counts) <= 16_384 < big.span.length / 10
