"""A packed row as text for a terminal."""

from itertools import groupby

from transformers import PreTrainedTokenizerBase

from beni.data.batch import PackedBatch
from beni.report.tokens import SegmentTokens, Token, decode, newline_id, segment_tokens, visible


def show_batch(batch: PackedBatch, tokenizer: PreTrainedTokenizerBase, image_token: int, limit: int = 400) -> str:
    """The beginning of a row: one line per segment, targets in ⟦ ⟧, images as `<image ×64>`.

    Rows of an image that end in newlines are told together: `8×(<image ×8><image_newline>)`.

    Args:
        batch: the row.
        tokenizer: decodes its ids.
        image_token: the id at positions that visual tokens take.
        limit: most tokens shown; a run of visual tokens counts as one.
    """
    lines = ["each line is a segment with its number ⟵ the segment it continues; ⟦targets⟧ are trained on"]
    left = limit
    for segment in segment_tokens(batch, image_token, newline=newline_id(tokenizer)):
        if left <= 0:
            lines.append(f"… and {len(batch.segments) - segment.index} more segments")
            break
        lines.append(_line(segment, tokenizer, left))
        left -= len(segment.tokens)
    return "\n".join(lines)


def _image(token: Token, tokenizer: PreTrainedTokenizerBase) -> str:
    run = f"<image ×{token.cols}>" if token.cols > 1 else "<image>"
    return f"{token.rows}×({run}{visible(decode(tokenizer, token.ids[-1:]))})" if token.rows else run


def _line(segment: SegmentTokens, tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    def kind(token: Token) -> tuple[bool, bool]:
        return token.image, token.target

    text = ""
    for (image, target), group in groupby(segment.tokens[:limit], key=kind):
        if image:
            text += "".join(_image(token, tokenizer) for token in group)
            continue
        stretch = visible(decode(tokenizer, tuple(id for token in group for id in token.ids)))
        text += f"⟦{stretch}⟧" if target else stretch
    head = f"{segment.index} ⟵ {segment.parent}" if segment.parent >= 0 else str(segment.index)
    note = " (stands in for an image)" if segment.dummy else ""
    rest = len(segment.tokens) - limit
    return f"[{head}]{note} {text}{f' … and {rest} more tokens' if rest > 0 else ''}"
