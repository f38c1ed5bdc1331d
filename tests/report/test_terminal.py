import re

import pytest

from beni.data.document import IGNORE
from beni.model.build import Built
from beni.report import show_batch
from beni.report.tokens import segment_tokens, texts_of, visible
from beni.sample import Sample, Turn
from tests.report.drawn import MakeRows, questions


@pytest.fixture(params=["inline", "xattn"])
def fusion(request: pytest.FixtureRequest) -> str:
    return request.param


def test_exactly_the_targets_are_marked(make_rows: MakeRows, built: dict[str, Built], fusion: str) -> None:
    rows = make_rows(questions(), fusion)
    tokenizer = built[fusion].tokenizer
    shown = show_batch(rows[(0, 0, 0)], tokenizer, rows.composer.image_token, limit=10_000)
    marked = re.findall("⟦(.*?)⟧", shown.partition("\n")[2])
    expected = []
    for sample in questions():
        document = rows.composer.compose(sample)
        expected.append(tokenizer.decode([id for id in document.labels[1:].tolist() if id != IGNORE]))
    assert sorted(marked) == sorted(expected)


def test_marked_tokens_are_the_targets_of_the_batch(make_rows: MakeRows, fusion: str) -> None:
    rows = make_rows(questions(), fusion)
    batch = rows[(0, 0, 0)]
    tokens = [token for segment in segment_tokens(batch, rows.composer.image_token) for token in segment.tokens]
    assert [token.ids[0] for token in tokens if token.target] == batch.targets_K.tolist()
    assert [id for token in tokens for id in token.ids] == batch.ids_T.tolist()


def test_images_are_one_mark_and_segments_are_lines(make_rows: MakeRows, built: dict[str, Built]) -> None:
    rows = make_rows(questions())
    lines = show_batch(
        rows[(0, 0, 0)], built["inline"].tokenizer, rows.composer.image_token, limit=10_000
    ).splitlines()[1:]
    heads = [re.match(r"\[(.*?)\]", line).group(1) for line in lines]  # type: ignore[union-attr]
    assert heads == [
        "0",
        "1 ⟵ 0",
        "2 ⟵ 0",
        "3 ⟵ 0",
        "4",
        "5 ⟵ 4",
        "6 ⟵ 4",
        "7 ⟵ 4",
        "8",
        "9 ⟵ 8",
        "10 ⟵ 8",
        "11 ⟵ 8",
        "12",
    ]
    assert [line.count("<image ×64>") for line in lines] == [1, 0, 0, 0] * 3 + [0]
    assert "⏎what colour is it?" in lines[1] and "⟦red" in lines[1]


def test_the_limit_cuts_and_says_how_much_is_left(make_rows: MakeRows, built: dict[str, Built]) -> None:
    rows = make_rows(questions())
    batch, tokenizer, image = rows[(0, 0, 0)], built["inline"].tokenizer, rows.composer.image_token
    first = len(segment_tokens(batch, image)[0].tokens)
    lines = show_batch(batch, tokenizer, image, limit=first + 3).splitlines()
    assert len(lines) == 4
    assert re.search(r"… and \d+ more tokens$", lines[2]) and lines[3] == "… and 11 more segments"


def test_a_row_without_images_names_its_stand_in(make_rows: MakeRows, built: dict[str, Built]) -> None:
    rows = make_rows([Sample("t", (Turn("user", ("is it red?",)), Turn("assistant", ("yes",))))])
    shown = show_batch(rows[(0, 0, 0)], built["inline"].tokenizer, rows.composer.image_token)
    assert "[1] (stands in for an image) <image ×64>" in shown


def test_every_token_has_a_text_and_they_join_to_the_document(make_rows: MakeRows, built: dict[str, Built]) -> None:
    text = "is  it\nred? é世 yes"
    rows = make_rows([Sample("t", (Turn("text", (text,)),))])
    tokenizer = built["inline"].tokenizer
    tokens = segment_tokens(rows[(0, 0, 0)], rows.composer.image_token)[0].tokens
    texts = texts_of(tokenizer, tokens)
    assert all(texts)
    assert "".join(t for t in texts if t in text).startswith("is  it\nred? ")


def test_control_characters_cannot_reach_the_terminal() -> None:
    assert visible("a\n\t\x1b[31m b") == "a⏎⇥\\u001b[31m b"
