"""A model starts from the weights of a saved one, part by part."""

from pathlib import Path
from typing import Any

import pytest
import torch

from beni.errors import ConfigError
from beni.model.build import Built
from beni.model.parts import NEW_TOKENS, part_of
from tests.model.small import FUSIONS, make
from tests.model.test_new_tokens import llm_without
from tests.model.test_saved import save


def again(parts: str, folder: Path, **tables: Any) -> Built:
    """The same model with other first weights, started from a saved one."""
    return make(parts, gates=0.0, optim={"init": str(folder)}, run={"seed": 1}, **tables)


def equal_parts(one: Built, other: Built) -> set[str]:
    """Parts all of whose parameters have the same bits."""
    own = dict(other.model.named_parameters())
    parts = {part_of(name) for name in own}
    differ = {part_of(name) for name, p in one.model.named_parameters() if not torch.equal(p, own[name])}
    return parts - differ


@pytest.mark.parametrize("parts", FUSIONS)
def test_every_part_is_taken_over(parts: str, tmp_path: Path) -> None:
    first = make(parts)
    second = again(parts, save(first, tmp_path))
    assert equal_parts(first, second) == {part_of(name) for name, _ in first.model.named_parameters()}
    assert second.loaded.keys() == {part_of(name) for name in first.model.state_dict()}
    assert {origin.origin for origin in second.loaded.values()} == {str(tmp_path)}
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert second.tokenizer.chat_template == first.tokenizer.chat_template, "an empty --template keeps the saved one"


def test_another_connector_and_fusion_start_afresh(tmp_path: Path) -> None:
    first = make("inline")
    second = again("xattn", save(first, tmp_path))
    assert second.loaded.keys() == {"encoder.main", "llm"}
    own = dict(second.model.named_parameters())
    same = [n for n, p in first.model.named_parameters() if n in own and torch.equal(p, own[n])]
    assert {part_of(name) for name in same} == {"encoder.main", "llm"}


def test_tokens_that_were_added_are_taken_and_new_ones_are_not(tmp_path: Path) -> None:
    """A newline token comes in: the vocabulary grows by one, and all that was learned stays."""
    first = make("inline", connector={"name": "concat"})
    folder = save(first, tmp_path)
    rows = {"connector": {"name": "concat"}, "fusion": {"name": "inline", "newline": "row"}}
    second = again("inline", folder, **rows)
    assert second.model.new_tokens.weight is not None and first.model.new_tokens.weight is None
    assert NEW_TOKENS not in second.loaded
    saved, table = (each.model.get_input_embeddings().weight for each in (first, second))
    assert len(table) >= len(saved) and torch.equal(table[: len(saved)], saved)
    third = again("inline", save(second, tmp_path / "b"), **rows)
    assert torch.equal(third.model.new_tokens.weight, second.model.new_tokens.weight)


def test_an_end_that_was_added_stays_one_token(tmp_path: Path) -> None:
    llm = {"name": "hf", "model": llm_without(tmp_path / "llm", "eos")}
    first = make("inline", llm=llm)
    second = again("inline", save(first, tmp_path / "model"), llm=llm)
    assert second.model.new_tokens.ids == first.model.new_tokens.ids != ()
    assert torch.equal(second.model.new_tokens.weight, first.model.new_tokens.weight)


def test_a_part_of_other_sizes_is_refused(tmp_path: Path) -> None:
    folder = save(make("inline"), tmp_path)
    with pytest.raises(
        ConfigError, match=r"its connector is not this one: 'connector\.layers\.\S+' is \(.*config\.json"
    ):
        again("inline", folder, connector={"name": "mlp", "kind": "mlp3x_gelu"})


@pytest.mark.parametrize(
    ("made", "message"), [("", "no saved model there"), ("model/config.json", "is a run; its model is")]
)
def test_what_is_no_saved_model(made: str, message: str, tmp_path: Path) -> None:
    if made:
        (tmp_path / made).parent.mkdir()
        (tmp_path / made).touch()
    with pytest.raises(ConfigError, match=message):
        make("inline", optim={"init": str(tmp_path)})
