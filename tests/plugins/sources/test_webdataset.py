"""Tars: samples by name, texts of every form, any place at any time, and every way in which one can be wrong."""

import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from beni.cli.main import main
from beni.data.images import image_size, load_image
from beni.data.loader import Rows, batches
from beni.data.plan import Lengths, Place, Plan
from beni.data.spec import judged, parse, validation
from beni.errors import DataError
from beni.options import BatchConfig
from beni.sample import Sample, Turn
from beni.testing import SourceConformance, checks, run
from beni.training.run import train
from beni_plugins.sources.webdataset import WebDataset
from tests.conftest import write_tar
from tests.core.data.tiny import composer
from tests.training.small import small_run
from tests.training.test_run import train_whole_and_in_parts

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def png(colour: str, size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def captions(path: Path, *keys: str) -> Path:
    return write_tar(
        path, {f"{key}{end}": data for key in keys for end, data in ((".png", png("red")), (".txt", b"red"))}
    )


def read(path: Path | str, split: str = "train") -> list[Sample]:
    return list(parse(f"webdataset:{path}").samples(split) or [])


def colours(sample: Sample) -> list[tuple[int, ...]]:
    return [load_image(ref).getpixel((0, 0)) for ref in sample.images]  # type: ignore[misc]


def test_files_of_one_name_are_a_sample(tmp_path: Path) -> None:
    """Wherever they lie, whatever their capitals; several images in the order of their numbers."""
    path = write_tar(
        tmp_path / "s.tar",
        {
            "./in/0001.JPG": png("red"),
            "in/0002.10.png": png("blue"),
            "in/0002.json": {"question": "which <image><image>, or <image>?", "answer": ["none", "x"], "image": "gone"},
            "in/0002.2.png": png("green"),
            "in/0002.1.png": png("red"),
            "./in/0001.txt": b"\xef\xbb\xbfa red thing\n",
            "README": b"notes",
            "in/._0001.jpg": b"left by a file manager",
        },
    )
    one, two = read(path)
    assert (one.id, two.id) == ("s/in/0001", "s/in/0002")
    assert one.turns == (Turn("user", (0,)), Turn("assistant", ("a red thing",)))
    assert two.turns[0].content == ("which ", 0, 1, ", or ", 2, "?") and two.answer == "none"
    assert colours(one) == [RED] and colours(two) == [RED, GREEN, BLUE]
    assert [image_size(ref) for ref in two.images] == [(12, 8)] * 3
    assert two.images[2].name == f"{path}: in/0002.10.png"


LLAVA = [{"from": "human", "value": "<image>a?"}, {"from": "gpt", "value": "b"}]
TEXTS: dict[str, tuple[dict[str, Any], tuple[str | int, ...], str]] = {
    "conversations": ({"json": {"conversations": LLAVA, "caption": "x"}, "txt": b"x"}, (0, "a?"), "b"),
    "messages": ({"json": {"messages": [{"role": "user", "content": "a?"}, LLAVA[1]]}}, (0, "\n", "a?"), "b"),
    "a list": ({"json": LLAVA}, (0, "a?"), "b"),
    "question and answer": ({"json": {"question": "a?", "answer": 3, "conversations": None}}, (0, "\n", "a?"), "3"),
    "caption": ({"caption": b" a caption "}, (0,), "a caption"),
    "caption in json": ({"json": {"caption": "a caption", "url": "http://x"}}, (0,), "a caption"),
    "img2dataset": ({"json": {"caption": None, "url": "x", "width": 5}, "txt": "é".encode()}, (0,), "é"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts(tmp_path: Path, kind: str) -> None:
    texts, question, answer = TEXTS[kind]
    [sample] = read(
        write_tar(tmp_path / "s.tar", {"k.png": png("red"), **{f"k.{end}": text for end, text in texts.items()}})
    )
    assert (sample.turns[0].content, sample.answer) == (question, answer)


def test_captions_answer_a_prompt(tmp_path: Path) -> None:
    path = captions(tmp_path / "s.tar", "k")
    assert read(f"{path}?prompt=Describe the image.")[0].turns[0].content == (0, "\n", "Describe the image.")
    assert read(f"{path}?prompt=What is <image>?")[0].turns[0].content == ("What is ", 0, "?")


def test_text_alone_is_a_conversation(tmp_path: Path) -> None:
    [sample] = read(write_tar(tmp_path / "s.tar", {"k.json": {"question": "a?", "answer": "b"}}))
    assert sample.images == () and sample.question == "a?"


def test_ranges_lists_patterns_and_folders_name_tars(tmp_path: Path) -> None:
    for name in ("a/00.tar", "a/01.tar", "b/00.tar"):
        captions(tmp_path / name, "k", "l")
    names = {
        f"{tmp_path}/a/{{00..01}}.tar": ["00/k", "00/l", "01/k", "01/l"],
        f"{tmp_path}/a/01.tar": ["01/k", "01/l"],
        f"{tmp_path}/{{b,a}}/*.tar": ["b/00/k", "b/00/l", "a/00/k", "a/00/l", "a/01/k", "a/01/l"],
        f"{tmp_path}/a": ["00/k", "00/l", "01/k", "01/l"],
    }
    assert {spec: [sample.id for sample in read(spec)] for spec in names} == names


@pytest.mark.parametrize(
    "names", [("train-0.tar", "validation-0.tar", "test.tar"), ("train/0.tar", "val/0.tar", "test/0.tar")]
)
def test_a_folder_may_have_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names, 1):
        captions(tmp_path / name, *"abc"[:number])
    assert [len(read(tmp_path, split)) for split in ("train", "val", "test")] == [1, 2, 3]
    assert parse(f"webdataset:{tmp_path}").source.split("other") is None
    assert [len(samples) for samples in validation([f"webdataset:{tmp_path}"])] == [2]
    assert [len(samples) for samples in judged([], [f"webdataset:{tmp_path}"]).values()] == [3]
    captions(tmp_path / "more" / "values.tar", "k")
    assert len(read(tmp_path / "more")) == 1, "no name of a split"
    captions(tmp_path / "more.tar", "k")
    with pytest.raises(DataError, match=r"has tars of splits, and more\.tar, whose name begins with none of train"):
        read(tmp_path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"k.png": png("red")}, r": k\.\* has no text: neither a \.txt"),
    "json that says nothing": ({"k.json": {"url": "x"}, "k.png": png("red")}, r": k\.\* has no text"),
    "broken json": ({"k.json": b'{"question": "a', "k.png": png("red")}, r": k\.json is not JSON: Unterminated string"),
    "not utf-8": ({"k.txt": "é".encode("latin-1"), "k.png": png("red")}, r": k\.txt is not UTF-8 text: byte 0 is 0xe9"),
    "no image": ({"k.txt": b"a caption", "k.avif": b"x"}, r": k\.txt: is a caption of no image; images are jpg"),
    "empty": ({"k.txt": b" \n", "k.png": png("red")}, r": k\.txt: the answer is empty"),
    "no answer": ({"k.json": LLAVA[:1], "k.png": png("red")}, r": k\.json: ends without an answer"),
    "a lonely image": (
        {"k.json": {"question": "<image><image>", "answer": "b"}, "k.png": png("red")},
        r"2 <image> marks but 1",
    ),
    "no turns": ({"k.json": {"messages": ["hello"]}}, r": k\.json: turn 0 is not {role, content}"),
    "a strange answer": ({"k.json": {"question": "a?", "answer": {}}}, r": k\.json: the text under 'answer' is {}"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_sample_that_cannot_be_made_is_left_out_and_told(tmp_path: Path, kind: str) -> None:
    files, said = WRONG[kind]
    path = write_tar(tmp_path / "s.tar", {"a.png": png("red"), "a.txt": b"red", **files})
    samples = parse(f"webdataset:{path}").samples("train")
    assert samples is not None
    lengths = Lengths(samples, composer())
    [(name, told)] = lengths.bad
    assert lengths.usable.tolist() == [0] and name == "s/k"
    assert told.startswith(f"sample 's/k': {path}: k") and re.search(said, told) and "\n" not in told


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"LICENSE": b"x", ".0001.jpg": b"x"}, "holds no sample: names look like 0001.jpg and 0001.json, not LICENSE"),
        ({"a.txt": b"x", "./a.TXT": b"y"}, "holds ./a.TXT twice (capitals are not told apart): give samples names"),
        ({}, "is an empty tar"),
    ],
)
def test_a_tar_that_cannot_be_used_is_refused_when_it_is_opened(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    """Every other way is in `tests/core/data/test_tars.py`."""
    captions(tmp_path / "0.tar", "a")
    write_tar(tmp_path / "1.tar", files)
    with pytest.raises(DataError) as caught:
        parse(f"webdataset:{tmp_path}/{{0..1}}.tar").samples("train")
    assert str(caught.value).startswith(f"{tmp_path}/1.tar {said}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("webdataset", "write webdataset:shards/{0000..0099}.tar"),
        ("webdataset:https://host/{0..9}.tar", "https://host/{0..9}.tar is not on a disk of this machine: download"),
        (
            "webdataset:FOLDER/{0..9}.tar",
            "there is no file FOLDER/1.tar, nor 8 more of the 10 that FOLDER/{0..9}.tar names",
        ),
        ("webdataset:FOLDER/x*.tar", "there is no file FOLDER/x*.tar"),
        (f"webdataset:{{{','.join('0123456789' * 30)}}}", "there is no file 0, nor 299 more of the 300"),
        ("webdataset:FOLDER/{0,*}.tar", "names FOLDER/0.tar twice; --weights"),
        ("webdataset:FOLDER/empty", "there is no .tar in FOLDER/empty"),
    ],
)
def test_tars_that_are_not_there(tmp_path: Path, spec: str, said: str) -> None:
    captions(tmp_path / "0.tar", "k")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        parse(spec.replace("FOLDER", str(tmp_path))).samples("train")
    assert said.replace("FOLDER", str(tmp_path)) in str(caught.value)


def test_planning_reads_no_image_and_nothing_is_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(
        tmp_path / "s.tar", {f"{n}.{end}": data for n in range(9) for end, data in (("png", b"x" * 9), ("txt", b"y"))}
    )
    samples = parse(f"webdataset:{path}").samples("train")
    assert samples is not None
    read_at: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, at: read_at.append(count) or pread(file, count, at))
    opened = Path("/proc/self/fd")
    before = len(list(opened.iterdir()))
    assert len(Lengths(samples, composer()).usable) == 9
    assert len(read_at) >= 9 and set(read_at) == {1}, "a byte of text of each sample"
    assert len(list(opened.iterdir())) == before
    assert len(pickle.dumps(samples)) < 3000


def talks(folder: Path, shards: int = 3, samples: int = 5) -> str:
    for shard in range(shards):
        files: dict[str, Any] = {}
        for n in range(samples):
            files[f"{n}.png"] = png(("red", "green", "blue")[(n + shard) % 3], (8 + n, 8))
            files[f"{n}.json"] = {"question": f"what is {n} of {shard}?", "answer": f"{n * shard}"}
        write_tar(folder / f"{shard}.tar", files)
    return f"webdataset:{folder}/{{0..{shards - 1}}}.tar"


def test_workers_and_processes_read_the_same_batches_shuffled_over_all_tars(tmp_path: Path) -> None:
    samples, make = parse(talks(tmp_path)).samples("train"), composer()
    assert samples is not None
    rows = Rows([samples], Plan([Lengths(samples, make)], (), BatchConfig(rows=2, row_tokens=80), seed=3), make)
    steps = rows.plan.steps(0)
    drawn = [samples[member.index].id for row in rows.plan.rows(0) for tree in row for member in tree]
    assert sorted(drawn) == sorted(sample.id for sample in samples) and drawn != sorted(drawn)
    assert {id.partition("/")[0] for id in drawn[:5]} == {"0", "1", "2"}
    walked = list(batches(rows, Place(), steps, workers=0))
    loaded = [list(batches(rows, Place(), steps, workers)) for workers in (1, 2)]
    shares = [list(batches(rows, Place(), steps, 0, rank, 2)) for rank in (0, 1)]
    for step, (_, whole) in enumerate(walked):
        for other in (loaded[0][step][1], loaded[1][step][1], [share[step][1][0] for share in shares]):
            for a, b in zip(whole, other, strict=True):
                assert torch.equal(a.ids_T, b.ids_T) and torch.equal(a.visual.pixels["main"], b.visual.pixels["main"])


def test_a_run_that_was_interrupted_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    train_whole_and_in_parts(3, tmp_path, {"data": {"data": [talks(tmp_path / "data")]}, "optim": {"steps": 4}})


def test_a_broken_sample_ends_a_run_or_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the report shows pictures that lie in tars."""
    talks(tmp_path / "data", 1)
    write_tar(tmp_path / "data" / "1.tar", {"k.json": b"{", "k.png": png("red")})
    spec = f"webdataset:{tmp_path}/data"
    out = tmp_path / "run"
    result = train(small_run(out, data={"data": [spec], "eval_data": [f"webdataset:{tmp_path}/data/0.tar"]}))
    [left_out] = result["unusable"]
    assert left_out["id"] == "1/k" and "1.tar: k.json is not JSON" in left_out["reason"]
    assert "data:image/" in (out / "report.html").read_text()
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", spec, "--on-bad-sample", "error", "--steps", "1", "--out", str(tmp_path / "other")])
    assert stop.value.code == 2 and "1.tar: k.json is not JSON" in capsys.readouterr().err


class Tars(SourceConformance):
    part = WebDataset


@pytest.mark.parametrize("check", checks(SourceConformance))
def test_keeps_what_its_kind_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    for split, count in (("train", 40), ("val", 3), ("test", 2)):
        captions(tmp_path / f"{split}-0.tar", *map(str, range(count)))
    monkeypatch.setattr(Tars, "options", {"path": str(tmp_path)})
    outcome = run(Tars, check)
    assert outcome.status == "ok", outcome.reason
