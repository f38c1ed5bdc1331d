"""Plain text: every character in exactly one document."""

import random
from pathlib import Path

import pytest

from beni.data.spec import parse
from beni.errors import ConfigError, DataError
from beni.sample import Turn


def texts(spec: str, split: str = "train") -> list[str]:
    return ["".join(map(str, sample.turns[0].content)) for sample in parse(spec).samples(split) or []]


@pytest.mark.parametrize("characters", [1, 7, 64, 5000])
def test_stretches_cover_every_character_once(tmp_path: Path, characters: int) -> None:
    chance = random.Random(0)
    whole = "".join(chance.choice("ab é\n\r\n\u2028\x0c\t") for _ in range(2000))
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8", newline="")
    found = texts(f"text:{tmp_path / 'a.txt'}?characters={characters}")
    assert "".join(found) == whole
    assert all(0 < len(text) <= characters for text in found)


def test_stretches_end_at_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    assert texts(f"text:{tmp_path / 'a.txt'}?characters=9") == ["one\ntwo\n", "three\n"]


def test_documents_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\u2028b"}\n\n{"text": "c", "more": 1}\n', encoding="utf-8")
    assert texts(f"text:{path}") == ["a\u2028b", "c"]
    [first, _] = parse(f"text:{path}").samples("train") or []
    assert first.turns == (Turn("text", ("a\u2028b",)),) and first.id == "a-0"
    for wrong in ('{"text": 3}', '["text"]', '{"txt": "a"}', '{"text": '):
        path.write_text(f'{{"text": "a"}}\n{wrong}\n')
        with pytest.raises(DataError, match=r"a\.jsonl, line 2: not"):
            texts(f"text:{path}")


def test_the_end_is_held_out(tmp_path: Path) -> None:
    path, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    path.write_text("".join(f"line {n}\n" for n in range(1000)))
    lines.write_text("".join(f'{{"text": "{n}"}}\n' for n in range(20)))
    train, val = (texts(f"text:{path}?characters=64&validation=0.1", split) for split in ("train", "val"))
    whole = path.read_text()
    assert "".join(train) == whole[: round(0.9 * len(whole))] and "".join(train + val) == whole
    names = [{s.id for s in parse(f"text:{path}?validation=0.1").samples(split) or []} for split in ("train", "val")]
    assert not names[0] & names[1]
    assert texts(f"text:{lines}?validation=0.25", "val") == ["15", "16", "17", "18", "19"]
    assert parse(f"text:{path}").samples("val") is None
    for wrong in ("-0.1", "1"):
        with pytest.raises(ConfigError, match=r"'validation' is .*; it must be in \[0, 1\)"):
            texts(f"text:{path}?validation={wrong}")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*gone\.txt"):
        texts(f"text:{tmp_path / 'gone.txt'}")
    with pytest.raises(ConfigError, match="at least 1"):
        texts(f"text:{tmp_path / 'gone.txt'}?characters=0")
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="not UTF-8 text: byte 2 is 0xff"):
        texts(f"text:{tmp_path / 'a.txt'}")
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        texts(f"text:{tmp_path / 'a.txt'}")
    with pytest.raises(DataError, match="write text:PATH"):
        texts("text")
    assert parse(f"text:{tmp_path / 'a.txt'}").source.split("val") is None
