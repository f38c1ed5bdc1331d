"""A packed row as readable stretches: what is text, what is an image, what is trained on."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from beni.data.batch import PackedBatch
from beni.sample import NEWLINE_MARK


@dataclass(frozen=True, slots=True)
class Token:
    """One position of a row, or a run of positions that visual tokens take, or the rows of a map of them."""

    at: int
    """The first position."""
    ids: tuple[int, ...]
    image: bool
    target: bool
    """Whether some position must predict it."""
    rows: int = 0
    """How many equally long rows of visual tokens these are, each with its newline; 0: a run without newlines."""

    @property
    def cols(self) -> int:
        """Visual tokens of a row, or of the run."""
        return len(self.ids) // self.rows - 1 if self.rows else len(self.ids)


@dataclass(frozen=True, slots=True)
class SegmentTokens:
    """One segment of a row."""

    index: int
    parent: int
    """Another segment of the row, or -1."""
    dummy: bool
    """Whether it only stands in for the image that a row without images lacks."""
    tokens: tuple[Token, ...]


def segment_tokens(
    batch: PackedBatch, image_token: int, image_starts: Collection[int] = (), newline: int | None = None
) -> list[SegmentTokens]:
    """The row's tokens, segment by segment.

    Args:
        batch: the row.
        image_token: the id at positions that visual tokens take; a run of them becomes one token.
        image_starts: positions at which a new image or block of one begins, which ends a run before them.
        newline: the id at the ends of rows of visual tokens, if there are any; rows of one length become one token.
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
            index,
            segment.parent,
            segment.start >= batch.stats.tokens,
            tuple(_rows_joined([*tokens(segment.start, segment.end)], image_starts, newline)),
        )
        for index, segment in enumerate(batch.segments)
    ]


def _rows_joined(tokens: Sequence[Token], image_starts: Collection[int], newline: int | None) -> Iterator[Token]:
    """The tokens, with two or more rows of an image that are equally long as one."""

    def is_row(at: int) -> bool:
        return at + 1 < len(tokens) and tokens[at].image and tokens[at + 1].ids == (newline,)

    at = 0
    while at < len(tokens):
        row, end = tokens[at], at
        while is_row(end) and tokens[end].ids == row.ids and (end == at or tokens[end].at not in image_starts):
            end += 2
        rows = (end - at) // 2
        if rows < 2:
            yield row
            at += 1
        else:
            ids = tuple(id for token in tokens[at:end] for id in token.ids)
            yield Token(row.at, ids, image=True, target=False, rows=rows)
            at = end


def newline_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id at the ends of rows of visual tokens, if the model has such."""
    return tokenizer.get_vocab().get(NEWLINE_MARK)


def decode(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """The text of a stretch, special tokens included."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def texts_of(tokenizer: PreTrainedTokenizerBase, tokens: tuple[Token, ...]) -> list[str]:
    """The text of each token as it reads behind the one before it; for rows of visual tokens, what ends them.

    A token that is no whole character by itself is named as the vocabulary names it.
    """
    texts = []
    for image, group in groupby(tokens, key=lambda token: token.image):
        before: tuple[int, ...] = ()
        for token in group:
            if image:
                texts.append(decode(tokenizer, token.ids[-1:]) if token.rows else "")
                continue
            texts.append(_text(tokenizer, before, token.ids))
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
