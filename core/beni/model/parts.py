"""The parts of a model: which one a parameter belongs to, and its layers."""

import re
from collections.abc import Iterator, Sequence

from torch import nn

from beni.model.llm import decoder_layers
from beni.model.modeling import BeniForConditionalGeneration

NEW_TOKENS = "new_tokens"
"""Embeddings of added tokens: a part that always starts from scratch."""
ADAPTER = ".adapter"
"""Behind a part's name: its adapters, which are a part by themselves."""
LORA = re.compile(r"\.lora_")
"""What is in the name of every parameter of an adapter, and of nothing else."""


def part_of(name: str) -> str:
    """The part that a parameter belongs to: encoder.KEY, connector, fusion, llm, new_tokens, or a part's adapters."""
    first, rest = name.split(".", 1)
    part = {"encoders": f"encoder.{rest.split('.', 1)[0]}", "level_connectors": "connector"}.get(first, first)
    return part + ADAPTER if LORA.search(name) else part


def blocks_of(model: BeniForConditionalGeneration, part: str) -> list[nn.Module]:
    """The layers of a part, from its input to its output; none of one that is a single unit.

    The connectors of several levels are one part, with as many layers as one of them: each layer stands for that layer
    of all of them.
    """
    kind, _, key = part.partition(".")
    if kind == "llm":
        return list(decoder_layers(model.llm))
    if kind == "encoder":
        return list(model.encoders[key].blocks())  # type: ignore[operator]
    if kind == "connector":
        stacks: list[Sequence[nn.Module]] = [each.blocks() for each in model.connectors()]  # type: ignore[operator]
        return [nn.ModuleList(layers) for layers in zip(*stacks, strict=True)]
    return []


def stacks(model: BeniForConditionalGeneration) -> Iterator[Sequence[nn.Module]]:
    """Rows of blocks, one behind the other: each encoder's, each connector's, and the decoder layers."""
    for part in (*model.encoders.values(), *model.connectors()):
        yield part.blocks()  # type: ignore[operator]
    yield list(decoder_layers(model.llm))
