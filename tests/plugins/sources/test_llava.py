"""LLaVA JSON: images or none, and every malformed item named."""

from pathlib import Path
from typing import Any

import pytest

from beni.data.images import image_size
from beni.data.spec import parse
from beni.errors import DataError
from beni.sample import Sample, Turn
from tests.conftest import write_llava


def talk(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]


ITEMS: list[dict[str, Any]] = [
    {"id": "one", "image": "red.png", "conversations": talk("<image>\nwhat colour?", "red")},
    {
        "id": "list",
        "image": ["red.png", "blue.png"],
        "conversations": talk("<image> or <image>?", "both", "why?", "so"),
    },
    {"id": "turns", "image": ["red.png", "blue.png"], "conversations": talk("<image>a?", "b", "and <image>?", "c")},
    {"id": 3, "conversations": talk("no image", "none")},
    {"image": "http://127.0.0.1/a.png", "conversations": talk("what?<image>", "a")},
    {"id": "null", "image": None, "conversations": [{"from": "system", "value": "brief"}, *talk("a?", "b")]},
]


def read(path: Path, split: str = "train") -> list[Sample]:
    return list(parse(f"llava:{path}").samples(split) or [])


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_items(tmp_path: Path, name: str) -> None:
    samples = read(write_llava(tmp_path, ITEMS, name))
    assert [sample.id for sample in samples] == ["one", "list", "turns", "3", "4", "null"]
    assert samples[0].turns == (Turn("user", (0, "\nwhat colour?")), Turn("assistant", ("red",)))
    assert samples[1].turns[0].content == (0, " or ", 1, "?") and len(samples[1].turns) == 4
    assert [Path(image.path).name for image in samples[1].images] == ["red.png", "blue.png"]
    assert image_size(samples[0].images[0]) == (12, 8)
    assert [turn.content for turn in samples[2].turns[::2]] == [(0, "a?"), ("and ", 1, "?")]
    assert samples[3].images == () and samples[4].images[0].url == "http://127.0.0.1/a.png"
    assert [turn.role for turn in samples[5].turns] == ["system", "user", "assistant"]


def test_what_several_people_said_and_choices(tmp_path: Path) -> None:
    item = {"conversations": talk("a?", "b"), "answers": ["b", "c"], "choices": ["b", "d"]}
    [sample] = parse(f"llava:{write_llava(tmp_path, [item])}?metric=vqa").samples("train") or []
    assert (sample.answers, sample.choices, sample.metric) == (("b", "c"), ("b", "d"), "vqa")


def test_paths_may_be_relative_to_another_folder(tmp_path: Path) -> None:
    path = write_llava(tmp_path / "pictures", ITEMS[:1])
    moved = path.rename(tmp_path / "talk.json")
    [sample] = parse(f"llava:{moved}?images={tmp_path / 'pictures'}").samples("train") or []
    assert image_size(sample.images[0]) == (12, 8)


def test_a_folder_of_splits(tmp_path: Path) -> None:
    write_llava(tmp_path, ITEMS, "train.json")
    write_llava(tmp_path, ITEMS[:2], "val.jsonl")
    spec = parse(f"llava:{tmp_path}")
    assert {
        name: spec.source.split(name) and len(spec.source.split(name) or []) for name in ("train", "val", "test")
    } == {
        "train": 6,
        "val": 2,
        "test": None,
    }
    with pytest.raises(DataError, match="has no split 'test'"):
        parse(f"llava:{tmp_path}?split=test").samples("train")
    with pytest.raises(DataError, match=r"folder without train\.json"):
        read(tmp_path / "..")


def test_json_lines_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '\ufeff{"conversations": [{"from": "human", "value": "a\u2028b"}, {"from": "gpt", "value": "c"}]}\r\n\n',
        encoding="utf-8",
    )
    assert read(path)[0].question == "a\u2028b"


MALFORMED: dict[str, Any] = {
    "is a str, not an object": "text",
    "has no 'conversations'": {"id": "x"},
    "has no 'conversations', a list of": {"id": "x", "conversations": []},
    "turn 0 is not {role, content}, {from, value}": {"id": "x", "conversations": ["hello"]},
    "turn 1 is of 'robot', and not of": {"id": "x", "conversations": [*talk("a"), {"from": "robot", "value": "b"}]},
    "turn 0 is not {role": {"id": "x", "conversations": [{"from": "human", "value": None}]},
    "has 0 <image> marks but 1 image": {"id": "x", "image": "red.png", "conversations": talk("a", "b")},
    "has 2 <image> marks but 1 image": {"id": "x", "image": ["red.png"], "conversations": talk("<image><image>", "b")},
    "has 1 <image> mark but 0 images; its fields are id, conversations: images are named by 'image'": {
        "id": "x",
        "conversations": talk("<image>", "b"),
    },
    "'image' is neither a path nor a list": {"id": "x", "image": 7, "conversations": talk("<image>", "b")},
    "'image' is neither a path": {"id": "x", "image": ["red.png", None], "conversations": talk("<image>", "b")},
    "'answers' is not a list of texts": {"id": "x", "conversations": talk("a", "b"), "answers": "b"},
    "'choices' is not a list of texts": {"id": "x", "conversations": talk("a", "b"), "choices": [1]},
    "ends without an answer": {"id": "x", "conversations": talk("a", "b", "c")},
    "turn 1 is an answer with an <image> mark": {"id": "x", "image": "red.png", "conversations": talk("a", "<image>")},
}


@pytest.mark.parametrize("said", MALFORMED)
def test_a_malformed_item_is_named(tmp_path: Path, said: str) -> None:
    path = write_llava(tmp_path, [ITEMS[0], MALFORMED[said]])
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, item 1") and said in message and "\n" not in message
    assert isinstance(MALFORMED[said], str) or "(id 'x')" in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.json", b'[{"id": 1', r"cut\.json is not JSON \(cut off\?\)"),
        ("cut.jsonl", b'{"conversations": []}\n{"id"', r"cut\.jsonl, line 2: not JSON"),
        ("object.json", b"{}", r"object\.json holds a dict"),
        ("empty.json", b"", r"empty\.json is not JSON"),
        ("none.json", b"[]", r"none\.json', split 'train', is empty"),
        ("latin.json", '["é"]'.encode("latin-1"), r"latin\.json is not UTF-8"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*gone\.json"):
        read(tmp_path / "gone.json")
    with pytest.raises(DataError, match="write llava:PATH"):
        parse("llava").samples("train")
