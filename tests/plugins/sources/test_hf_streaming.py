"""`datasets` in streaming mode: the same rows, in order, from any position."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest

from beni.data.images import load_image
from beni.data.spec import parse, validation
from beni.errors import DataError
from beni.interfaces import Stream
from beni.sample import Sample
from beni.testing.source import SourceConformance
from tests.plugins.sources.test_hf import png

COLOURS = ("red", "blue", "green", "black", "white")


pytestmark = pytest.mark.usefixtures("datasets_apart")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parquet files of five rows for training, and one for validation."""
    for name, first in (("train-0", 0), ("train-1", 5), ("validation-0", 10)):
        numbers = range(first, first + 5)
        columns = {
            "image": [{"bytes": png(COLOURS[n % 5]), "path": None} for n in numbers],
            "question": [f"which colour is number {n}?" for n in numbers],
            "answer": [n % 5 for n in numbers],
        }
        labels = datasets.ClassLabel(names=list(COLOURS))
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).cast_column("answer", labels)
        table.to_parquet(tmp_path / "set" / "data" / f"{name}.parquet", batch_size=2)
    return tmp_path / "set"


def stream_of(spec: str, split: str = "train") -> Any:
    found = parse(spec).source.split(split)
    assert isinstance(found, Stream)
    return found


def rows_of(folder: Path, split: str = "train") -> list[Sample]:
    samples = parse(f"hf:{folder}").samples(split)
    assert samples is not None
    return [samples[n] for n in range(len(samples))]


def test_the_rows_are_those_of_the_whole_table(folder: Path) -> None:
    samples = stream_of(f"hf:{folder}?streaming=true").read(None, 100).samples
    assert samples == rows_of(folder) and len(samples) == 10
    assert load_image(samples[6].images[0]).getpixel((0, 0)) == (0, 0, 255) and samples[6].answer == "blue"


@pytest.mark.parametrize("count", [1, 3, 5, 10])
def test_another_process_goes_on_from_any_position(folder: Path, count: int) -> None:
    wanted = rows_of(folder)
    first = stream_of(f"hf:{folder}?streaming=true")
    assert first.read(None, 2).samples == wanted[:2]
    reading = first.read(None, count)
    assert reading.samples == wanted[:count], "from the beginning again"
    position = json.loads(json.dumps(reading.position))
    for stream in (stream_of(f"hf:{folder}?streaming=true"), pickle.loads(pickle.dumps(first)), first):
        assert stream.read(position, 100).samples == wanted[count:]
    assert first.read(first.read(position, 100).position, 1).samples == []


def test_validation_is_read_whole(folder: Path) -> None:
    [samples] = validation([f"hf:{folder}?streaming=true"])
    assert list(samples) == rows_of(folder, "val") and len(samples) == 5
    assert parse(f"hf:{folder}?streaming=true").source.split("test") is None


def test_a_row_that_makes_no_sample_is_left_to_be_listed(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "answer": "b"},
        {"question": "<image> c?", "answer": "d"},
        {"question": "e", "answer": "f"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = stream_of(f"hf:{tmp_path / 'rows.jsonl'}?streaming=true").read(None, 5).samples
    assert [sample.problem != "" for sample in found] == [False, True, False]
    assert "row 1" in found[1].problem and "1 <image> mark but 0 images" in found[1].problem


def test_a_file_that_is_cut_is_told_where_it_is_read(folder: Path) -> None:
    cut = folder / "data" / "train-1.parquet"
    stream = stream_of(f"hf:{folder}?streaming=true")
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot be read behind row 5: .*train-1\.parquet was cut off"):
        stream.read(stream.read(None, 5).position, 5)


def test_columns_that_are_not_known_before(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nwhat?,this\nand?,that\n")
    found = stream_of(f"hf:{tmp_path / 'rows.csv'}?streaming=true").read(None, 5).samples
    assert [sample.answer for sample in found] == ["this", "that"]
    with pytest.raises(DataError, match="no column 'image' for the image; it has question, answer"):
        parse(f"hf:{tmp_path / 'rows.csv'}?streaming=true&image=image").training()


def test_columns_are_asked_for_before_training(folder: Path) -> None:
    with pytest.raises(DataError, match="no column 'nothing' for the answer"):
        parse(f"hf:{folder}?streaming=true&answer=nothing").training()


def test_tars_are_streamed_as_well(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(3):
            for suffix, data in (("png", png(COLOURS[number])), ("txt", f"colour {number}".encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    found = stream_of(f"hf:{tmp_path}?streaming=true&image=png&question=__key__&answer=txt").read(None, 9).samples
    assert [sample.answer for sample in found] == ["colour 0", "colour 1", "colour 2"]
    assert [load_image(sample.images[0]).size for sample in found] == [(5, 4)] * 3


def test_it_keeps_the_promises_of_sources(folder: Path) -> None:
    class Streamed(SourceConformance):
        part = "hf"
        options: ClassVar = {"path": str(folder), "streaming": True}

    suite = Streamed()
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(suite, name)()
