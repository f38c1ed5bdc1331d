"""A packed row as readable stretches: what is text, what is an image, what is trained on."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from beni.data.batch import PackedBatch


@dataclass(frozen=True, slots=True)
class Token:
    """One position of a row, or a run of positions that visual tokens take."""

    at: int
    """The first position."""
    ids: tuple[int, ...]
    image: bool
    target: bool
    """Whether some position must predict it."""


@dataclass(frozen=True, slots=True)
class SegmentTokens:
    """One segment of a row."""

    index: int
    parent: int
    """Another segment of the row, or -1."""
    dummy: bool
    """Whether it only stands in for the image that a row without images lacks."""
    tokens: tuple[Token, ...]


def segment_tokens(batch: PackedBatch, image_token: int, image_starts: Collection[int] = ()) -> list[SegmentTokens]:
    """The row's tokens, segment by segment.

    Args:
        batch: the row.
        image_token: the id at positions that visual tokens take; a run of them becomes one token.
        image_starts: positions at which a new image begins, which ends a run before them.
    """
    ids = batch.ids_T.tolist()
    targets = {position + 1 for position in batch.keep_K.tolist()}  # a target follows its predictor in its segment

    def tokens(start: int, end: int) -> Iterator[Token]:
        position = start
        while position < end:
            stop = position + 1
            image = ids[position] == image_token
            while image and stop < end and ids[stop] == image_token and stop not in image_starts:
                stop += 1
            yield Token(position, tuple(ids[position:stop]), image, position in targets)
            position = stop

    return [
        SegmentTokens(
            index, segment.parent, segment.start >= batch.stats.tokens, tuple(tokens(segment.start, segment.end))
        )
        for index, segment in enumerate(batch.segments)
    ]


def decode(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """The text of a stretch, special tokens included."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def texts_of(tokenizer: PreTrainedTokenizerBase, tokens: tuple[Token, ...]) -> list[str]:
    """The text of each token as it reads behind the one before it; empty for runs of visual tokens.

    A token that is no whole character by itself is named as the vocabulary names it.
    """
    texts = []
    for image, group in groupby(tokens, key=lambda token: token.image):
        before: tuple[int, ...] = ()
        for token in group:
            texts.append("" if image else _text(tokenizer, before, token.ids))
            before = token.ids
    return texts


def _text(tokenizer: PreTrainedTokenizerBase, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
    prefix, both = decode(tokenizer, before), decode(tokenizer, before + ids)
    text = both[len(prefix) :] if both.startswith(prefix) else ""
    if text and "\ufffd" not in text:
        return text
    return str(tokenizer.convert_ids_to_tokens(ids[0]))


def visible(text: str) -> str:
    """A text on one line: line ends and tabs drawn, other control characters spelled out."""
    drawn = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(drawn.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
