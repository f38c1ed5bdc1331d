"""What attention reads, for whoever wants to see it.

Parts tell the weights that they compute with, and only while somebody listens; else it costs a look at a variable:

    if listener := listening():
        listener.crops(self, attention_weights(q, k, heads)[..., :tokens])

Three things can be told. What text reads in the visual memory is told by `beni.nn.attention.cross_attention`, and what
it reads of itself by the language model's attention, whatever the part. What visual tokens read of an encoder's map is
told by the part that reads it: `crops` where queries read the tokens of their own crop, `windows` where each reads what
lies under it.

Shapes: A positions of the text that are asked about, H heads, T positions of the row, M visual memory, C crops, Q
queries of a crop, V visual tokens, R tokens under one query, N tokens of an encoder's maps.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from beni.types import Grid, Windows

_listener: ContextVar["Listener | None"] = ContextVar("listener", default=None)


@dataclass(frozen=True)
class Reading:
    """What the queries of one layer read of one encoder's map."""

    reader: nn.Module
    """The layer: it tells to which part the reading belongs."""
    encoder: int
    """Which of the encoders, in the order in which they were chosen; the first where they are joined."""
    weights_VR: Float[Tensor, "V R"]
    """Mean over heads, float32, on the CPU. A row sums to one, less what the query reads elsewhere: other encoders,
    latents."""
    index_VR: Int[Tensor, "V R"]
    """The number of each token among those of all crops."""
    grids: tuple[Grid, ...]
    """Of the map of each crop; their counts sum to N."""
    in_order: bool
    """Whether the queries are the visual tokens, one by one."""


class Listener:
    """What was told during a forward pass of one row.

    Args:
        text_A: the positions of the row whose reading is wanted.
    """

    def __init__(self, text_A: Int[Tensor, " A"]) -> None:
        self.text_A = text_A
        self.memory: list[Float[Tensor, "A M"]] = []
        """What text reads in the visual memory, for each block in order: mean over heads; rows sum to one, or to zero
        where nothing is seen."""
        self.itself: list[Float[Tensor, "A T"]] = []
        """What text reads of the row, for each layer in order: mean over heads; rows sum to one."""
        self.readings: list[Reading] = []
        self._grids: tuple[Grid, ...] | None = None
        self._read: dict[nn.Module, int] = {}

    def about(self, grids: Sequence[Grid] | None) -> None:
        """Say what is read now: crops of these grids, one by one; None: their tokens are not handed on as they are,
        and what is read of them is not kept."""
        self._grids = None if grids is None else tuple(grids)
        self._read = {}

    def crops(self, reader: nn.Module, weights_CHQN: Float[Tensor, "C H Q N"]) -> None:
        """Tell what the queries of the next crops read of the tokens of these.

        A layer that sees crops in several turns tells each turn; queries become visual tokens in their order.
        """
        if self._grids is None:
            return
        first = self._read.get(reader, 0)
        crops, _, queries, tokens = weights_CHQN.shape
        self._read[reader] = first + crops
        starts = torch.tensor([0, *(grid.count for grid in self._grids)]).cumsum(0)[first : first + crops]
        index_CN = starts[:, None] + torch.arange(tokens)
        self.readings.append(
            Reading(
                reader=reader,
                encoder=0,
                weights_VR=_kept(rearrange(weights_CHQN.float().mean(1), "c q n -> (c q) n")),
                index_VR=index_CN.repeat_interleave(queries, dim=0),
                grids=self._grids,
                in_order=True,
            )
        )

    def windows(self, reader: nn.Module, weights: Sequence[Float[Tensor, "V _ _"]], windows: Windows) -> None:
        """Tell what queries read of their windows: for each encoder [queries, heads, R] weights of `windows.keys`."""
        assert windows.under is not None, "they are known while somebody listens"
        for encoder, (weights_VHR, (grids, index_VR)) in enumerate(zip(weights, windows.under, strict=True)):
            self.readings.append(
                Reading(
                    reader=reader,
                    encoder=encoder,
                    weights_VR=_kept(weights_VHR.float().mean(1)),
                    index_VR=index_VR.cpu(),
                    grids=grids,
                    in_order=False,
                )
            )


def listening() -> Listener | None:
    """Whoever wants to be told what is read; nobody does while a graph is compiled."""
    return None if torch.compiler.is_compiling() else _listener.get()


@contextmanager
def listen(text_A: Int[Tensor, " A"]) -> Iterator[Listener]:
    """Inside, forward passes in this thread tell what they read; made for one pass of one row.

    Args:
        text_A: the positions of the row whose reading is wanted.
    """
    listener = Listener(text_A)
    token = _listener.set(listener)
    try:
        yield listener
    finally:
        _listener.reset(token)


def attention_weights(
    q: Float[Tensor, "B H Q K"],
    k: Float[Tensor, "B G N K"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B H Q N"]:
    """softmax(q·k) in float32, as `scaled_dot_product_attention` has it inside; H / G query heads share a key head.

    Args:
        mask: which keys are seen, or what is added to the scores; a query that sees none reads nothing.
        scale: of the scores; by default 1/sqrt(K).
        softcap: scores become softcap·tanh(scores/softcap), or None.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.float() @ k.float().transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).nan_to_num(0.0)


def _kept(weights: Tensor) -> Tensor:
    """Out of the graph and off the device: whoever listens wants to look at them later."""
    return weights.detach().cpu()
