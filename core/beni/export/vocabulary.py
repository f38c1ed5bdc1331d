"""The language model's tables with a row for every token, as native classes have no embeddings beside them."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beni.errors import ExportError
from beni.model.modeling import BeniForConditionalGeneration


class Tables(NamedTuple):
    """One row per token id; equal where the model ties them."""

    embedding_ND: Float[Tensor, "N D"]
    output_ND: Float[Tensor, "N D"]
    silent: tuple[int, ...]
    """Tokens that the model cannot predict: their output rows are nothing that was learned."""


_AFTERWARDS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Fields of language models' configurations that change logits behind the output layer; None and 1 change nothing."""


def full_tables(model: BeniForConditionalGeneration, tokens: int, image_id: int) -> Tables:
    """The tables, with the rows of the model's new tokens put in.

    Args:
        model: beni's; its new tokens have embeddings of their own.
        tokens: how many ids the tokenizer has.
        image_id: the token that stands for images in the native class.

    Raises:
        ExportError: the output layer is not a plain matrix, or something comes behind it.
    """
    for field in _AFTERWARDS:
        value = getattr(model.llm.config, field, None)
        if value not in (None, 1):
            raise ExportError(
                f"{type(model.llm).__name__} changes logits behind its output layer ({field} is {value}), and native "
                f"classes do not"
            )
    head, new = model.get_output_embeddings(), model.new_tokens
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ExportError(
            f"the output layer of {type(model.llm).__name__} is not one matrix, and that of native classes is"
        )
    known = head.weight.shape[0]
    rows = max(tokens, known, image_id + 1)
    embedding_ND, output_ND = (
        torch.cat([table.detach(), table.new_zeros(rows - len(table), table.shape[1])])
        for table in (model.get_input_embeddings().weight, head.weight)
    )
    if new.weight is not None:
        ids = torch.tensor(new.ids)
        embedding_ND[ids] = new.weight.detach().to(embedding_ND)
        output_ND[ids[: new.predicted]] = new.weight[: new.predicted].detach().to(output_ND)
    predicted = set(range(known)) | set(new.ids[: new.predicted])
    silent = set(range(rows)) - predicted | set(new.ids[new.predicted :]) | {image_id, model.config.image_token_id}
    if model.config.tie_word_embeddings:
        output_ND = embedding_ND
    return Tables(embedding_ND, output_ND, tuple(sorted(silent)))
