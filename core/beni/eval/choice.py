"""The likeliest of given answers, all choices of an item behind its question in one packed row.

The likelihood of a choice is the product of the probabilities of its tokens, the one that ends an answer among them, so
that "red" is not likelier than "red ball" for being a part of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from beni.data.batch import PackedBatch, Pictures, pack
from beni.data.document import Composer, Document
from beni.model.modeling import BeniForConditionalGeneration
from beni.sample import Sample, Turn

ROW = 2048
"""Tokens of a row, where one item does not have more."""

Offered = Sequence[Document]
"""The conversation of an item, once with each choice as its answer."""


def offered(sample: Sample, composer: Composer) -> Offered:
    """An item's conversation with each of its choices.

    Raises:
        DataError: one of them cannot be told, or is too long.
    """
    return [
        composer.compose(replace(sample, turns=(*sample.turns[:-1], Turn("assistant", (choice,)))))
        for choice in sample.choices
    ]


def rows(items: Mapping[int, Offered]) -> Iterator[dict[int, Offered]]:
    """Items in rows of about equal size, in their order."""
    row: dict[int, Offered] = {}
    length = 0
    for number, documents in items.items():
        own = sum(len(document) for document in documents)
        if row and length + own > ROW:
            yield row
            row, length = {}, 0
        row[number] = documents
        length += own
    if row:
        yield row


def log_likelihoods(
    model: BeniForConditionalGeneration, composer: Composer, items: Sequence[Offered], pictures: Pictures
) -> list[list[float]]:
    """Log probability of each choice of each item, in nats.

    Args:
        model: in evaluation mode.
        composer: made the documents.
        items: a row of them; may be empty.
        pictures: has their images.
    """
    trees = [tree for documents in items for tree in _trees(documents)]
    row = pack(trees, composer, pictures=pictures)
    with torch.no_grad():
        logits_KV = model(packed=row.to(model.device)).logits
    found = iter(_by_document(trees, row, logits_KV))
    return [[next(found) for _ in documents] for documents in items]


def _trees(documents: Offered) -> Sequence[Offered]:
    """Choices behind images share them; without any, each stands by itself."""
    return [documents] if documents[0].head else [[document] for document in documents]


def _by_document(trees: Sequence[Offered], row: PackedBatch, logits_KV: Tensor) -> Iterator[float]:
    log_p_K = logits_KV.float().log_softmax(-1).gather(1, row.targets_K.to(logits_KV.device)[:, None])[:, 0]
    ends = np.array([segment.end for segment in row.segments])
    segment_K = np.searchsorted(ends, row.keep_K.cpu().numpy(), side="right")
    of_segment = np.bincount(segment_K, weights=log_p_K.double().cpu().numpy(), minlength=len(ends))
    segments = iter(of_segment.tolist())
    for tree in trees:
        if len(tree) > 1:
            next(segments)  # what they share has no target
        yield from (next(segments) for _ in repeat(None, len(tree)))
