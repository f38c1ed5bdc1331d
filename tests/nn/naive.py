"""Attention written out position by position: slow, and too simple to be wrong."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from beni.types import Segment


def random_row(rng: np.random.Generator, trees: int) -> tuple[list[Segment], np.ndarray]:
    """Segments of a row of random trees up to three generations deep, and each token's position in its document."""
    segments: list[Segment] = []
    ends: list[int] = []  # position in the document behind each segment
    positions: list[np.ndarray] = []
    for _ in range(trees):
        first = len(segments)
        for index in range(int(rng.integers(1, 6))):
            parent = int(rng.integers(first, first + index)) if index else -1
            start = segments[-1].end if segments else 0
            begin = ends[parent] if parent >= 0 else 0
            length = int(rng.integers(1, 9))
            segments.append(Segment(start, start + length, parent))
            ends.append(begin + length)
            positions.append(np.arange(begin, begin + length))
    return segments, np.concatenate(positions)


def ancestry(segments: Sequence[Segment], index: int) -> list[int]:
    """A segment and those it sees wholly."""
    line = [index]
    while segments[line[-1]].parent >= 0:
        line.append(segments[line[-1]].parent)
    return line


def visible(segments: Sequence[Segment], positions: np.ndarray, t: int, window: int | None) -> list[int]:
    """The positions that position `t` of the row attends to."""
    owner = next(i for i, s in enumerate(segments) if s.start <= t < s.end)
    seen = [u for i in ancestry(segments, owner) for u in range(segments[i].start, segments[i].end) if u <= t]
    return [u for u in seen if window is None or positions[t] - positions[u] < window]


def naive_attention(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    seen: Sequence[Sequence[int]],
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q·k)·v over `seen[t]` for each position and head; zero where there is nothing to see."""
    scale = scale if scale is not None else q_THK.shape[-1] ** -0.5
    group = q_THK.shape[1] // k_TGK.shape[1]
    out = []
    for t, keys in enumerate(seen):
        for head in range(q_THK.shape[1]):
            if not keys:
                out.append(torch.zeros_like(q_THK[0, 0]))
                continue
            scores = k_TGK[list(keys), head // group] @ q_THK[t, head] * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out.append(scores.softmax(0) @ v_TGK[list(keys), head // group])
    return torch.stack(out).view(q_THK.shape)
