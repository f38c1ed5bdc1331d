"""Datasets of many columns and formats, without the network."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from beni.data.images import load_image
from beni.data.spec import parse, validation
from beni.errors import DataError
from beni.sample import Sample, Turn

Save = Callable[..., str]


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(file, "png")
    return file.getvalue()


pytestmark = pytest.mark.usefixtures("datasets_apart")


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """`save(columns, features)`: a parquet file's spec."""

    def write(columns: dict[str, list[Any]], features: dict[str, Any] | None = None) -> str:
        table = datasets.Dataset.from_dict(columns)
        for name, feature in (features or {}).items():
            table = table.cast_column(name, feature)
        table.to_parquet(tmp_path / "a.parquet")
        return f"hf:{tmp_path / 'a.parquet'}"

    return write


def read(spec: str, split: str = "train") -> list[Sample]:
    samples = parse(spec).samples(split)
    return [] if samples is None else [samples[n] for n in range(len(samples))]


def colours(sample: Sample) -> list[tuple[int, ...]]:
    return [load_image(ref).getpixel((0, 0)) for ref in sample.images]  # type: ignore[misc]


RED, BLUE = (255, 0, 0), (0, 0, 255)
STRUCT = [{"bytes": png("red"), "path": None}, {"bytes": png("blue"), "path": None}]


@pytest.mark.parametrize("feature", [None, datasets.Image()], ids=["struct", "Image"])
def test_question_and_answer_with_an_image(save: Save, feature: Any) -> None:
    columns = {"image": STRUCT, "question": ["what?", "<image> is it?"], "answer": ["red", "blue"], "id": ["x", None]}
    first, second = read(save(columns, {"image": feature} if feature else None))
    assert first.turns == (Turn("user", (0, "\n", "what?")), Turn("assistant", ("red",)))
    assert second.turns[0].content == (0, " is it?")
    assert (first.id, second.id) == ("x", "1") and (colours(first), colours(second)) == ([RED], [BLUE])


def test_lists_of_images_and_none(save: Save) -> None:
    columns = {"images": [STRUCT, []], "query": ["which?", "none?"], "answers": [["a", "b"], ["c"]]}
    first, second = read(save(columns, {"images": datasets.List(datasets.Image())}))
    assert colours(first) == [RED, BLUE] and first.turns[0].content == (0, 1, "\n", "which?") and first.answer == "a"
    assert second.images == () and second.question == "none?"


def test_plain_bytes(save: Save) -> None:
    [sample] = read(save({"img": [png("blue")], "prompt": ["what?"], "caption": ["x"]}))
    assert colours(sample) == [BLUE]


TALKS: dict[str, list[Any]] = {
    "messages": [{"role": "user", "content": "<image>a?"}, {"role": "assistant", "content": "b"}],
    "conversations": [{"from": "human", "value": "<image>a?"}, {"from": "gpt", "value": "b"}],
    "texts": [{"user": "<image>a?", "assistant": "b", "source": "x"}],
    "conversation": [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "a?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
    ],
}


@pytest.mark.parametrize("column", TALKS)
def test_conversations(save: Save, column: str) -> None:
    [sample] = read(save({"image": STRUCT[:1], column: [TALKS[column]]}))
    assert sample.turns == (Turn("user", (0, "a?")), Turn("assistant", ("b",)))


def test_answers_of_several_people_are_kept(save: Save) -> None:
    """As VQAv2 has them: the first is learned, all judge."""
    people = [[{"answer": "cat", "answer_id": 1}, {"answer": "a cat", "answer_id": 2}]]
    [sample] = read(save({"question": ["?"], "answers": people}))
    assert sample.answer == "cat" and sample.answers == ("cat", "a cat") and sample.choices == ()
    [alone] = read(save({"question": ["?"], "answers": [["cat"]]}))
    assert alone.answers == ()


@pytest.mark.parametrize("answer", [2, "2", "C", "blue"])
def test_the_answer_may_be_the_number_or_the_letter_of_a_choice(save: Save, answer: Any) -> None:
    columns = {"question": ["?"], "answer": [answer], "options": [["red", "a", "blue"]]}
    [sample] = read(f"{save(columns)}?choices=options&metric=choice")
    assert sample.answer == "blue" and sample.choices == ("red", "a", "blue") and sample.metric == "choice"
    numbers = save({"question": ["?"], "answer": [2], "options": [["1", "2", "3"]]})
    [sample] = read(f"{numbers}?choices=options")
    assert sample.answer == "3", "a whole number is that of a choice, whatever the choices are"
    letters = save({"question": ["?"], "answer": ["A"], "options": [["B", "A"]]})
    with pytest.raises(DataError, match="one of the choices, and the number or letter of another one, 'B'"):
        read(f"{letters}?choices=options")
    [unasked] = read(save(columns))
    assert unasked.answer == str(answer) and unasked.choices == (), "without being told so nothing is changed"


def test_columns_may_be_named(save: Save) -> None:
    spec = save({"ask": ["a?"], "said": [3], "pic": STRUCT[:1]})
    [sample] = read(f"{spec}?question=ask&answer=said&image=pic")
    assert (sample.question, sample.answer, colours(sample)) == ("a?", "3", [RED])
    with pytest.raises(DataError, match="has columns ask, said, pic: say which hold"):
        read(spec)
    with pytest.raises(DataError, match="no column 'asks' for the question; it has ask, said, pic"):
        read(f"{spec}?question=asks&answer=said")


def test_class_labels_answer_with_their_names(save: Save) -> None:
    names = datasets.ClassLabel(names=["cat", "dog"])
    assert [s.answer for s in read(save({"question": ["a?", "b?"], "label": [1, 0]}, {"label": names}))] == [
        "dog",
        "cat",
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"question": ["a?"], "answer": [None]}, "row 0: the answer .column 'answer'. is None"),
        ({"question": ["a?"], "answers": [[{"text": "b"}]]}, "row 0: the answer .column 'answers'. is {'text': 'b'}"),
        (
            {"question": ["<image><image>?"], "answer": ["b"], "image": STRUCT[:1]},
            "row 0: has 2 <image> marks but 1 image",
        ),
        ({"question": ["<image>?"], "answer": ["b"]}, "row 0: has 1 <image> mark but 0 images"),
        ({"messages": [[{"role": "robot", "content": "a"}]]}, "row 0: turn 0 is of 'robot', and not of human"),
        ({"messages": [[{"role": "user", "content": None}]]}, "row 0: turn 0 is not"),
        ({"texts": [[{"user": "a?"}]]}, "row 0: turn 1 is not"),
        ({"messages": [["hello"]]}, "row 0: turn 0 is not"),
        ({"messages": ["hello"]}, "row 0: the conversation is 'hello', not a list"),
        ({"messages": [[{"role": "assistant", "content": "a"}]], "image": STRUCT[:1]}, "no turn of the user"),
        ({"question": ["a?"], "answer": ["b"], "image": [7]}, "row 0: an image is a int, expected bytes"),
    ],
)
def test_a_malformed_row_is_named(save: Save, columns: dict[str, list[Any]], said: str) -> None:
    spec = save(columns)
    rows = parse(spec).source.split("train")
    assert rows is not None
    with pytest.raises(DataError, match=said) as caught:
        rows[0]
    assert str(caught.value).startswith("hf:") and "\n" not in str(caught.value)


def test_json_with_paths_beside_it(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "red.png", "question": "a?", "answer": "b"}) + "\n")
    [sample] = read(f"hf:{tmp_path / 'a.jsonl'}")
    assert colours(sample) == [RED]


def test_a_folder_has_splits(tmp_path: Path) -> None:
    folder = tmp_path / "data"  # not beside the cache
    folder.mkdir()
    for split, count in (("train", 2), ("validation", 1)):
        lines = [json.dumps({"question": f"{n}?", "answer": "b"}) for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    spec = f"hf:{folder}"
    assert (len(read(spec)), len(read(spec, "val")), read(spec, "test")) == (2, 1, [])
    assert [len(samples) for samples in validation([spec])] == [1]
    with pytest.raises(DataError, match="has no split 'tset'"):
        read(f"{spec}?split=tset")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"nonsense", "Parquet magic bytes"),
        ("a.json", b'[{"question":', "cannot be read: "),
        ("a.json", b"", "is an empty file"),
        ("", None, "doesn't contain any data files"),
        ("gone/x", None, "cannot be read: "),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read(f"hf:{folder / name}")
    assert str(folder / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="write hf:ID"):
        read("hf")


def test_captions_of_several_people_without_a_column_of_questions(save: Save) -> None:
    spec = save({"image": STRUCT, "caption": [["a dog", "one dog"], ["a cat", "cats"]]})
    first, _ = read(f"{spec}?prompt=Describe the image.&metric=caption")
    assert first.turns == (Turn("user", (0, "\n", "Describe the image.")), Turn("assistant", ("a dog",)))
    assert (first.answers, first.metric) == (("a dog", "one dog"), "caption")
    with pytest.raises(DataError, match=r"columns image, caption: say which hold the question .*\?prompt="):
        read(spec)
