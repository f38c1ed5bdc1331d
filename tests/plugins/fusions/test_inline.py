"""Newlines stand where the view or the fusion wants them, and are parameters only where they stand."""

from typing import Any

import pytest
import torch

from beni.data.batch import pack
from beni.errors import IncompatiblePartsError
from beni.interfaces import FusionConfig
from beni.sample import NEWLINE_MARK as NL
from beni.sample import Turn
from beni.types import Grid, ImageLayout, Merge, Size
from beni_plugins.fusions.inline import InlineConfig
from tests.model.small import CONVERSATIONS, inputs, make

PLAIN = ImageLayout(Size(8, 8), {})
UNPADDED = ImageLayout(Size(8, 8), {}, Merge(Grid(1, 2), unpad=True, newline=True))
SPATIAL = ImageLayout(Size(8, 8), {}, Merge(Grid(1, 2)))


@pytest.mark.parametrize(
    ("newline", "layout", "shapes", "text"),
    [
        ("none", PLAIN, (Grid(2, 3), 5), [6, 5]),
        ("none", SPATIAL, (Grid(2, 3), Grid(2, 4)), [6, 8]),
        ("none", UNPADDED, (Grid(2, 3), Grid(2, 4)), [6, 4, NL, 4, NL]),
        ("row", PLAIN, (Grid(2, 3), 5), [3, NL, 3, NL, 5]),
        ("row", UNPADDED, (Grid(2, 3), Grid(1, 4)), [3, NL, 3, NL, 4, NL]),
        ("block", PLAIN, (Grid(2, 3), 5), [6, NL, 5, NL]),
        ("block", UNPADDED, (Grid(2, 3), Grid(2, 4)), [6, NL, 4, NL, 4, NL]),  # the map ends with one already
    ],
)
def test_where_newlines_stand(newline: Any, layout: ImageLayout, shapes: tuple[Any, ...], text: list[Any]) -> None:
    config = InlineConfig(newline=newline)
    assert config.spell(layout, shapes) == text
    assert config.marks(layout, shapes) == ((NL,) if NL in text else ())
    if newline == "none":
        assert FusionConfig().spell(layout, shapes) == text


@pytest.mark.parametrize("connector", ["mlp", "perceiver"])
@pytest.mark.parametrize("newline", ["none", "row", "block"])
def test_a_newline_is_a_parameter_where_it_stands(newline: str, connector: str) -> None:
    """It is trained, packed documents still equal separate ones, and answers never hold one."""
    tables = {"fusion": {"name": "inline", "newline": newline}, "connector": {"name": connector}}
    if (newline, connector) == ("row", "perceiver"):
        with pytest.raises(IncompatiblePartsError, match=r"behind every row.*newline block.*mlp, concat"):
            make("inline", **tables)
        return
    built = make("inline", **tables)
    model, document = built.model.eval(), built.composer.compose(CONVERSATIONS[4])
    [*ids] = model.new_tokens.ids
    assert ids == ([] if newline == "none" else [built.tokenizer.convert_tokens_to_ids(NL)])
    rows = {"none": 0, "row": 4, "block": 1}[newline] * len(document.images)
    assert sum(document.ids.tolist().count(id) for id in ids) == rows
    other = built.composer.compose(CONVERSATIONS[0])
    together = model(packed=pack([[document], [other]], built.composer)).loss
    together.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.new_tokens.parameters())
    alone = [model(packed=pack([[doc]], built.composer)).loss for doc in (document, other)]
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=1e-5)
    batch = inputs(built, CONVERSATIONS[:2])
    answers = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert not set(ids) & set(answers.flatten().tolist())


def test_text_of_the_user_is_never_a_newline_of_an_image() -> None:
    built = make("inline-anyres")
    [newline] = built.model.new_tokens.ids
    pieces = built.composer.template.encode((Turn("user", (f"what is {NL}?",)), Turn("assistant", ("a cat",))))
    assert all(newline not in piece.ids for piece in pieces)


def test_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a module was made")

    monkeypatch.setattr(torch.nn.Module, "__init__", forbidden)
    for tables, reason in (
        ({"view": {"name": "anyres"}, "connector": {"name": "perceiver"}}, "no place.*view.merge flat"),
        ({"fusion": {"name": "inline", "newline": "row"}, "connector": {"name": "perceiver"}}, "newline block"),
    ):
        with pytest.raises(IncompatiblePartsError, match=reason):
            make("inline", **tables)
