"""A data file that was cut in the middle: one line with the file and the place, exit code 2, and nothing is trained."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from beni.cli.main import main
from tests.conftest import write_llava, write_tar

TALK = [{"from": "human", "value": "what is it? " * 10}, {"from": "gpt", "value": "an answer"}]
ROWS = {"question": [f"what is {n}? " * 30 for n in range(500)], "answer": [str(n) for n in range(500)]}


def llava(path: Path) -> None:
    write_llava(path.parent, [{"id": n, "conversations": TALK} for n in range(50)], path.name)


def text(path: Path) -> None:
    path.write_text("é" * 1000, encoding="utf-8")


def lines(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": "words " * 20}) + "\n" for _ in range(51)))


def table(path: Path) -> None:
    made = datasets.Dataset.from_dict(ROWS)
    {".parquet": made.to_parquet, ".jsonl": made.to_json, ".csv": made.to_csv}[path.suffix](path)


def stream(path: Path) -> None:
    made = pa.table(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, made.schema) as writer:
        for batch in made.to_batches(max_chunksize=50):
            writer.write_batch(batch)


def tar(path: Path) -> None:
    write_tar(path, {f"{n}.json": {"conversations": TALK} for n in range(50)})


CUT: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "llava json": ("llava:a.json", llava, r"a\.json is not JSON \(cut off\?\): .*line 1 column \d+ \(char \d+\)"),
    "llava lines": ("llava:a.jsonl", llava, r"a\.jsonl, line 26: not JSON: .*char \d+"),
    "text": ("text:a.txt", text, r"a\.txt is not UTF-8 text: byte 998 is 0xc3"),
    "text lines": ("text:a.jsonl", lines, r"a\.jsonl, line 26: not JSON"),
    "parquet": ("hf:a.parquet", table, r"a\.parquet was cut off: it ends at byte [\d,]+"),
    "parquet shard": ("hf:shards", table, r"shards/a\.parquet was cut off: it ends at byte [\d,]+"),
    "arrow": ("hf:a.arrow", stream, r"a\.arrow cannot be read: Expected .* bytes .*got \d+ \(it has [\d,]+ bytes"),
    "json lines": ("hf:a.jsonl", table, r"a\.jsonl cannot be read: JSON parse error: .* in row \d+"),
    "tar": ("webdataset:a.tar", tar, r"a\.tar was cut off or damaged behind 29\.json"),
    "csv": ("hf:a.csv", table, r"a\.csv, row \d+: the answer .* is None"),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_was_cut_is_told_before_training(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    spec, write, said = CUT[kind]
    source, _, name = spec.partition(":")
    target = tmp_path / "data" / name
    path = target if target.suffix else target / "a.parquet"
    path.parent.mkdir(parents=True)
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 - 1])
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", f"{source}:{target}", "--steps", "1", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    [told] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(said, told), told
    assert not (tmp_path / "run").exists()
