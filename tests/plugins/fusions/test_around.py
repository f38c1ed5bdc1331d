"""Tokens around images: where they stand, that they are learned, and which texts cannot be such."""

from typing import Any

import pytest

from beni.data.batch import pack
from beni.errors import ConfigError
from beni.sample import NEWLINE_MARK as NL
from beni.types import Grid, ImageLayout, Size
from beni_plugins.fusions.deepstack import DeepStackConfig
from beni_plugins.fusions.inline import InlineConfig
from beni_plugins.fusions.sva import AggregationConfig
from tests.model.small import CONVERSATIONS, make

PLAIN = ImageLayout(Size(8, 8), {})


@pytest.mark.parametrize("fusion", [InlineConfig, DeepStackConfig, AggregationConfig])
def test_they_stand_around_all_blocks(fusion: Any) -> None:
    config = fusion(before=("<img>", "<whole>"), after=("<img>",), newline="block")
    shapes = (Grid(2, 3), 5)
    assert config.spell(PLAIN, shapes) == ["<img>", "<whole>", 6, NL, 5, NL, "<img>"]
    assert config.marks(PLAIN, shapes) == (NL, "<img>", "<whole>")
    with pytest.raises(ConfigError, match="cannot be a token around images"):
        fusion(after=("<image>",))
    for text in (" ", " <img>"):
        with pytest.raises(ConfigError, match="cannot be a token around images"):
            fusion(before=(text,))


def test_they_are_learned() -> None:
    """One embedding each, also of one that stands on both sides; each gets a gradient."""
    built = make("inline", fusion={"name": "inline", "before": ["<img>", "<whole>"], "after": ["<img>"]})
    model, document = built.model, built.composer.compose(CONVERSATIONS[4])
    ids = [built.tokenizer.convert_tokens_to_ids(token) for token in ("<img>", "<whole>")]
    assert list(model.new_tokens.ids) == ids
    images = len(document.images)
    assert [document.ids.tolist().count(id) for id in ids] == [2 * images, images]
    model(packed=pack([[document]], built.composer)).loss.backward()
    weight = model.new_tokens.weight
    assert weight is not None and weight.grad is not None and (weight.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("mark", ["<eos>", "<user>", "a"])
def test_a_token_of_the_language_model_is_refused(mark: str) -> None:
    """What ends texts, a role, and a word."""
    assert mark in make("inline").tokenizer.get_vocab()
    with pytest.raises(ConfigError, match=f"'{mark}' around images, which means something else"):
        make("inline", fusion={"name": "inline", "after": [mark]})
