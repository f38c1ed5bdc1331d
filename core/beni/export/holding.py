"""Weights into a native class: the language model with its full tables, and whatever else the class holds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from beni.export.target import Source

_TABLE = "embed_tokens"
"""Of the language model, if the class is to tie the output layer to it; under another name both are written."""


class Language(NamedTuple):
    """A language model as native classes hold it: without its output layer, which stands beside it."""

    table: dict[str, Any]
    """Its configuration."""
    tied: bool
    """Whether the class ties the output layer to the embeddings."""
    state: Mapping[str, Tensor]
    output: Mapping[str, Tensor]
    """The state of the output layer."""

    @classmethod
    def of(cls, source: Source) -> "Language":
        """The saved model's, each token with a row of its own in the tables."""
        model, tables = source.model, source.tables
        base, embeddings = model.llm.base_model, model.get_input_embeddings()
        name = next(name for name, module in base.named_modules() if module is embeddings)
        tied = model.config.tie_word_embeddings and name == _TABLE
        return cls(
            model.llm.config.to_dict() | {"vocab_size": len(tables.embedding_ND), "tie_word_embeddings": tied},
            tied,
            base.state_dict() | {f"{name}.weight": tables.embedding_ND},
            {"weight": tables.output_ND},
        )

    def config(self) -> PreTrainedConfig:
        """Of its own class."""
        return AutoConfig.for_model(**self.table)


def holding(
    native_class: type[PreTrainedModel], config: PreTrainedConfig, states: Mapping[str, Mapping[str, Tensor]]
) -> PreTrainedModel:
    """A model of that class in fp32, in which each of these modules has this state."""
    with no_init_weights():
        native = native_class(config).float()  # a tower's configuration may ask for half of that
    for name, state in states.items():
        native.get_submodule(name).load_state_dict(state)
    native.tie_weights()  # without initialisation nobody has
    return native
