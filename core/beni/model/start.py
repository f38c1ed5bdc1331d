"""Weights that a model starts from: those of a saved one, part by part.

A part is taken over where the saved model has one of the same name; any other starts as it would without. So a second
stage of training may add a fusion or exchange the connector, and keeps what the first one has learned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from beni.errors import ConfigError
from beni.interfaces import Provenance
from beni.model.config import BeniConfig
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.parts import NEW_TOKENS, part_of
from beni.model.saved import model_folder
from beni.weights import find_weights, misfits, read_state_dict, sha256


def saved_config(folder: str) -> BeniConfig:
    """The configuration of a saved model.

    Raises:
        ConfigError: the folder is not one; says what may have been meant.
    """
    return BeniConfig.from_pretrained(model_folder(folder, "--init"))


def saved_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a saved model, with what was added to it."""
    saved_config(folder)
    return AutoTokenizer.from_pretrained(folder)


def start_from(model: BeniForConditionalGeneration, folder: str) -> dict[str, Provenance]:
    """Copy the weights of a saved model.

    Args:
        model: allocated, its tokenizer that of the saved model; changed in place.
        folder: a saved model.

    Returns:
        The parts that were taken over.

    Raises:
        ConfigError: a part of the same name has other tensors; names the first.
    """
    config, path = saved_config(folder), find_weights(folder)
    state, origin = read_state_dict(path), Provenance(folder, sha256(path))
    before, now, tables = _names(config), _names(model.config), _tables(model)
    taken = {NEW_TOKENS: origin} if _take_new_tokens(model, config.new_token_ids, state) else {}
    for part, own in _by_part(model).items():
        if part not in before or before[part] != now[part]:
            continue
        found = {name: _as_long(state[name], own[name], name in tables) for name in own if name in state}
        if wrong := misfits(found, own):
            there = tuple(found[wrong[0]].shape) if wrong[0] in found else "nothing"
            raise ConfigError(
                f"--init {folder}: its {part} is not this one: '{wrong[0]}' is {tuple(own[wrong[0]].shape)} here and "
                f"{there} there; give {part} the options that it had in that run's config.json"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(found[name])
        taken[part] = origin
    return taken


def _names(config: BeniConfig) -> dict[str, Any]:
    """What each part of a model is called; a language model is called by its kind."""
    parts = {f"encoder.{key}": table["name"] for key, table in config.encoders.items()}
    parts |= {"connector": config.connector["name"], "fusion": config.fusion["name"]}
    return parts | {"llm": config.get_text_config().model_type}


def _by_part(model: BeniForConditionalGeneration) -> dict[str, dict[str, Tensor]]:
    """Parameters and buffers of each part, tied ones once."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if name not in model.all_tied_weights_keys and part_of(name) != NEW_TOKENS:
            parts.setdefault(part_of(name), {})[name] = tensor
    return parts


def _tables(model: BeniForConditionalGeneration) -> set[str]:
    """Names of the language model's input and output embeddings."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(layer.weight) for layer in layers if layer is not None}
    return {name for name, parameter in model.named_parameters() if id(parameter) in weights}


def _as_long(saved: Tensor, own: Tensor, is_table: bool) -> Tensor:
    """A saved tensor; a table to which tokens were added since then keeps the rows of those."""
    return torch.cat([saved, own[len(saved) :]]) if is_table and saved.shape[1:] == own.shape[1:] else saved


def _take_new_tokens(model: BeniForConditionalGeneration, saved: Sequence[int], state: Mapping[str, Tensor]) -> bool:
    """Copy the embeddings of added tokens that both have; whether these are all that the model has.

    Tokens are the same where their ids are, since the tokenizer is.
    """
    weight, own = model.new_tokens.weight, model.new_tokens.ids
    if weight is None:
        return False
    rows = dict(zip(saved, state.get(f"{NEW_TOKENS}.weight", ()), strict=True))
    with torch.no_grad():
        for row, token in enumerate(own):
            if token in rows:
                weight[row].copy_(rows[token])
    return rows.keys() >= set(own)
