"""The configuration of a saved model: which parts with which options, and everything needed to rebuild them."""

import copy
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, no_type_check

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from beni.config import Part, part_from_dict, to_dict
from beni.types import EncoderSpec, Size


@no_type_check  # transformers makes it a dataclass whose __init__ takes more than its fields
class BeniConfig(PreTrainedConfig):
    """Plain tables, so that `config.json` can be read by people; parts are resolved when a model is built from it.

    `encoders`, `connector`, `fusion` and `view` are tables of parts (`beni.config.Part.to_dict`), encoders by key;
    `specs` is what each encoder said of itself; `text_config` is the Hugging Face config of the language model.
    """

    model_type = "beni"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    text_config: dict | PreTrainedConfig | None = None
    encoders: dict = dataclasses.field(default_factory=dict)
    encoder_order: list = dataclasses.field(default_factory=list)
    """The keys of `encoders` in the order in which their features are joined, as files hold tables sorted by name;
    empty: as they come."""
    specs: dict = dataclasses.field(default_factory=dict)
    connector: dict = dataclasses.field(default_factory=dict)
    fusion: dict = dataclasses.field(default_factory=dict)
    view: dict = dataclasses.field(default_factory=dict)
    template: str = ""
    """Jinja source of the chat template."""
    image_token_id: int = 0
    """The id at positions that visual tokens take."""
    new_token_ids: list = dataclasses.field(default_factory=list)
    """Ids with an embedding of their own, outside the LLM's table."""
    predicted_tokens: int = 0
    """How many of them, the first ones, the model can also predict."""
    stop_token_ids: list = dataclasses.field(default_factory=list)
    """Ids that end an answer."""
    tie_word_embeddings: bool = False
    """As the language model has it."""

    def save_pretrained(self, *arguments: Any, **named: Any) -> None:
        """Save without paths of this machine, since what is saved may be published; of each its last name is kept.

        A reload misses nothing: weights are saved with the model, and what an encoder is built from is in its spec.
        """
        portable = copy.deepcopy(self)
        for kind in ("encoders", "connector", "fusion", "view"):
            setattr(portable, kind, _without_paths(getattr(portable, kind)))
        text = portable.get_text_config()
        text._name_or_path = _without_paths(text._name_or_path)
        super(BeniConfig, portable).save_pretrained(*arguments, **named)

    def part(self, kind: str) -> Part:
        """The connector, fusion or view, resolved on this machine."""
        return part_from_dict(kind, getattr(self, kind))

    def encoder_parts(self) -> dict[str, Part]:
        """The encoders by key, in order, resolved on this machine."""
        return {key: part_from_dict("encoder", self.encoders[key]) for key in self.encoder_order or self.encoders}

    def encoder_specs(self) -> dict[str, EncoderSpec]:
        """What each encoder says of itself, by key, in order."""
        return {key: spec_from_dict(self.specs[key]) for key in self.encoder_order or self.encoders}


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(entry) for key, entry in value.items()}
    return Path(value).name if isinstance(value, str) and os.sep in value and Path(value).exists() else value


def spec_to_dict(spec: EncoderSpec) -> dict[str, Any]:
    """An encoder's spec as plain values."""
    return to_dict(spec)


def spec_from_dict(table: Mapping[str, Any]) -> EncoderSpec:
    """The inverse of `spec_to_dict`."""
    values = dict(table)
    tuples = {"size": Size(*values["size"]), "mean": tuple(values["mean"]), "std": tuple(values["std"])}
    return EncoderSpec(**values | tuples)
