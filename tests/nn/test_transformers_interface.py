"""The function that transformers calls obeys or refuses what a model asks of its attention."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from beni.errors import IncompatiblePartsError
from beni.nn.attention import ATTENTION
from beni.nn.plan import RowPlan, plan_row
from beni.types import Segment
from tests.nn.naive import naive_attention

LENGTH = 7


class Attention(torch.nn.Module):
    """What transformers' functions read of the module that calls them."""

    is_causal = True
    num_key_value_groups = 2


def call(plan: RowPlan | None, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """[T, H, K] of attention over one row of random queries, keys and values."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, LENGTH, 8), torch.randn(1, 1, LENGTH, 8), torch.randn(1, 1, LENGTH, 8)
    extra = {} if plan is None else {"segments": plan}
    out, weights = ALL_ATTENTION_FUNCTIONS[ATTENTION](Attention(), q, k, v, mask, **extra, **options)
    assert weights is None
    return out[0]


def expected(softcap: float | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, LENGTH, 8), torch.randn(1, LENGTH, 8), torch.randn(1, LENGTH, 8)
    return naive_attention(*(x.transpose(0, 1) for x in (q, k, v)), [range(t + 1) for t in range(LENGTH)], softcap)


def one_document() -> RowPlan:
    return plan_row([Segment(0, LENGTH)], np.arange(LENGTH))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_one_document_packed_or_not(packed: bool, softcap: float | None) -> None:
    out = call(
        one_document() if packed else None, softcap=softcap, position_ids=torch.arange(LENGTH)[None], use_cache=True
    )
    torch.testing.assert_close(out, expected(softcap))


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_masks_of_padded_rows(softcap: float | None) -> None:
    """Two positions of padding on the left see nothing, and do not spoil the others."""
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    mask[..., :2] = False
    out = call(None, mask, softcap=softcap)
    torch.manual_seed(0)
    q, k, v = (torch.randn(heads, LENGTH, 8).transpose(0, 1) for heads in (2, 1, 1))
    seen: list[range] = [range(2, t + 1) for t in range(LENGTH)]
    assert out.isfinite().all()
    torch.testing.assert_close(out[2:], naive_attention(q, k, v, seen, softcap)[2:])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "asked", [{"s_aux": torch.zeros(2)}, {"position_bias": torch.zeros(1)}, {"something_new": 1.0}]
)
def test_refuses_what_it_does_not_compute(packed: bool, asked: dict[str, Any]) -> None:
    with pytest.raises(IncompatiblePartsError, match=rf"Attention asks its attention for {next(iter(asked))}, which"):
        call(one_document() if packed else None, **asked)
    call(one_document() if packed else None, **dict.fromkeys(asked))  # None asks for nothing


def test_refuses_bidirectional_attention_in_packed_rows() -> None:
    with pytest.raises(IncompatiblePartsError, match="non-causal attention"):
        call(one_document(), is_causal=False)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_dropout_drops_weights_and_keeps_the_mean(softcap: float | None) -> None:
    plan = one_document()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, LENGTH, 8) for heads in (2, 1, 1))
    function = ALL_ATTENTION_FUNCTIONS[ATTENTION]
    draws = torch.stack(
        [function(Attention(), q, k, v, None, dropout=0.5, softcap=softcap, segments=plan)[0] for _ in range(400)]
    )
    plain = function(Attention(), q, k, v, None, softcap=softcap, segments=plan)[0]
    assert draws.std(0).min() > 0.01
    assert (draws.mean(0) - plain).abs().max() < 0.3
