"""Any Hugging Face causal LM, untouched: find its layers, run blocks beside them, give new tokens an embedding.

Nothing here knows a model family: layers are found by structure, and what a family does not support is found by trying.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from beni.errors import IncompatiblePartsError
from beni.interfaces import FusionContext, Insert
from beni.nn.attention import ATTENTION


def use_packed_attention(llm: PreTrainedModel) -> None:
    """Switch a causal LM to beni's attention.

    Raises:
        IncompatiblePartsError: the family does not let its attention be replaced, so packed rows would leak.
    """
    if getattr(llm, "_supports_attention_backend", False):
        llm.set_attn_implementation(ATTENTION)
    if llm.config._attn_implementation != ATTENTION:
        raise IncompatiblePartsError(
            f"{type(llm).__name__} does not use transformers' attention interface: documents packed into one row would "
            f"see each other. Families that work include Llama, Mistral, Qwen, Gemma, Phi-3, GPT-2, OPT and OLMo"
        )


def decoder_layers(llm: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers: the one ModuleList with as many entries as the config has hidden layers.

    Raises:
        IncompatiblePartsError: there is none, or more than one.
    """
    count = llm.config.get_text_config().num_hidden_layers
    found = [m for m in llm.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise IncompatiblePartsError(
            f"{type(llm).__name__} has {len(found)} lists of {count} modules: its decoder layers cannot be told"
        )
    return found[0]


def attach(llm: PreTrainedModel, inserts: Mapping[int, Insert]) -> dict[int, nn.Module]:
    """Run a fusion's blocks before or after decoder layers; returns these layers.

    The layer's class is swapped for a subclass that calls the block; the block itself stays a child of the fusion, so
    no parameter is renamed and none is owned twice. The context travels as the keyword argument `fusion`.

    Raises:
        IncompatiblePartsError: a layer that does not exist, or a family that drops keyword arguments on the way.
    """
    layers = decoder_layers(llm)
    if inserts:
        _probe(llm, layers[0])
    for index, insert in inserts.items():
        if not 0 <= index < len(layers):
            raise IncompatiblePartsError(f"the fusion wants decoder layer {index}, the LLM has {len(layers)}")
        layer = layers[index]
        layer.__dict__["fusion_insert"] = insert  # not registered: the fusion owns the block
        layer.__class__ = _with_insert(type(layer))  # type: ignore[arg-type]
    return {index: layers[index] for index in inserts}


def relink(layers: Mapping[int, nn.Module], inserts: Mapping[int, Insert]) -> None:
    """Let decoder layers that blocks were attached to run others: a fusion may have been exchanged for a trained copy.

    PEFT's `modules_to_save` does that; without this the copy would be saved, and the original computed with.
    """
    for index, layer in layers.items():
        if layer.__dict__["fusion_insert"].block is not inserts[index].block:
            layer.__dict__["fusion_insert"] = inserts[index]


@cache
def _with_insert(base: type[nn.Module]) -> type[nn.Module]:
    """One subclass per layer class, so that compiled layers share a graph."""

    def forward(self: nn.Module, hidden: Tensor, *args: Any, fusion: FusionContext | None = None, **kwargs: Any) -> Any:
        insert: Insert = self.__dict__["fusion_insert"]
        if fusion is not None and insert.before:
            hidden = insert.block(hidden, fusion)
        out = base.forward(self, hidden, *args, **kwargs)
        if fusion is not None and not insert.before:
            out = insert.block(out, fusion) if isinstance(out, Tensor) else (insert.block(out[0], fusion), *out[1:])
        return out

    return type(f"{base.__name__}WithFusion", (base,), {"forward": forward})


class _Reached(Exception):
    """Ends a probe at the layer it asked about."""


def _probe(llm: PreTrainedModel, layer: nn.Module) -> None:
    """Check that a keyword argument given to the LLM reaches its layers, by running it up to the first of them."""
    arrived = False

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal arrived
        arrived = "fusion" in kwargs
        raise _Reached

    handle = layer.register_forward_pre_hook(look, with_kwargs=True)
    weight = llm.get_input_embeddings().weight
    embeds = torch.zeros(1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype)
    untouched = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=weight.device)
    try:
        with torch.no_grad():
            llm(inputs_embeds=embeds, attention_mask=untouched, fusion=None, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not arrived:
        raise IncompatiblePartsError(
            f"{type(llm).__name__} drops keyword arguments before its layers: a fusion that works inside the LLM "
            f"cannot reach them. Use --fusion inline, or another family"
        )


class NewTokens(nn.Module):
    """Embeddings of tokens that the LLM's own table does not have: the table is not resized, a frozen LLM is frozen.

    Args:
        ids: token ids, inside or outside the LLM's vocabulary.
        predicted: how many of them, the first ones, can also be predicted; their rows serve as output weights too.
        width: channels of the LLM.
    """

    def __init__(self, ids: Sequence[int], predicted: int, width: int) -> None:
        super().__init__()
        self.ids = tuple(ids)
        self.predicted = predicted
        self.weight = nn.Parameter(torch.zeros(len(self.ids), width)) if self.ids else None

    def start_from(self, embedding: Float[Tensor, "vocab D"]) -> None:
        """Initialise with the mean of the LLM's embeddings and a little noise, so that rows differ.

        A token the LLM has never seen then looks like an average one. LLaVA draws its newline from randn/√D instead.
        """
        if self.weight is None:
            return
        with torch.no_grad():
            spread = embedding.std() * 0.1
            self.weight.copy_(embedding.mean(0) + spread * torch.randn_like(self.weight))

    def embed(self, ids: Int[Tensor, "*batch"], table: nn.Module) -> Float[Tensor, "*batch D"]:
        """Embeddings of ids, from the LLM's table or from here."""
        size: Any = table.num_embeddings
        embeds = table(ids.clamp(max=size - 1))
        if self.weight is not None:
            for row, token in zip(self.weight, self.ids, strict=True):
                embeds = torch.where((ids == token)[..., None], row.to(embeds.dtype), embeds)
        return embeds

    def extend_logits(self, head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        """Forward hook of the LLM's output layer: the columns of new tokens that can be predicted."""
        if self.weight is None or not self.predicted:
            return logits
        own = args[0] @ self.weight[: self.predicted].t().to(args[0].dtype)
        missing = max(self.ids[: self.predicted]) + 1 - logits.shape[-1]
        if missing > 0:
            floor = torch.finfo(logits.dtype).min
            logits = torch.nn.functional.pad(logits, (0, missing), value=floor)
        index = torch.tensor(self.ids[: self.predicted], device=logits.device)
        return logits.index_copy(-1, index, own)
