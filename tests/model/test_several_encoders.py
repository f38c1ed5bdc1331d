"""Two encoders in one model: joined by channel where their grids agree, refused where not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from beni.data.batch import pack
from beni.data.images import load_image
from beni.errors import IncompatiblePartsError
from beni.interfaces import Connector
from beni.model.build import Built
from beni.model.processing import BeniProcessor
from beni_plugins.connectors.mlp import Mlp
from tests.model.small import CONVERSATIONS, ENCODER, JOINED, A, inputs, make
from tests.plugins.specs import spec

LARGER = {
    "name": "tiny",
    "size": 32,
    "stem": [8, 8, 16],
    "blocks": [0, 0, 0],
    "width": 24,
    "layers": 1,
    "heads": 2,
    "merge": 1,
}
"""Another input size and width, the same 4x4 grid."""


@pytest.fixture(params=JOINED)
def pair(request: pytest.FixtureRequest) -> Built:
    return make(request.param, encoders={"small": ENCODER, "large": LARGER})


def test_channels_are_joined_in_order(pair: Built) -> None:
    visual = pack([[pair.composer.compose(CONVERSATIONS[0])]], pair.composer).visual
    assert {key: tuple(pixels.shape[-2:]) for key, pixels in visual.pixels.items()} == {
        "small": (16, 16),
        "large": (32, 32),
    }
    features = {key: pair.model.encoders[key](pixels) for key, pixels in visual.pixels.items()}
    joined = pair.model.connector.join(features)
    assert joined.grids == features["small"].grids == features["large"].grids
    assert torch.equal(joined.tokens_ND, torch.cat([features["small"].tokens_ND, features["large"].tokens_ND], dim=1))
    assert pair.model.connector.in_width == ENCODER["width"] + LARGER["width"]  # type: ignore[operator]


def test_both_are_trained_and_zero_without_images(pair: Built) -> None:
    documents = [pair.composer.compose(sample) for sample in CONVERSATIONS]
    pair.model(packed=pack([[doc] for doc in documents], pair.composer)).loss.backward()
    sums = {key: sum(float(p.grad.abs().sum()) for p in e.parameters()) for key, e in pair.model.encoders.items()}  # type: ignore[union-attr]
    assert all(value > 0 for value in sums.values())
    pair.model.zero_grad()
    pair.model(packed=pack([[documents[3]]], pair.composer)).loss.backward()
    gradients = [p.grad for e in pair.model.encoders.values() for p in e.parameters()]
    assert all(gradient is not None and (gradient == 0).all() for gradient in gradients)


def test_packed_equals_padded_and_reloads(pair: Built, tmp_path: Path) -> None:
    pair.model.eval().save_pretrained(tmp_path)
    BeniProcessor(pair.tokenizer, pair.composer).save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    batch = inputs(pair, CONVERSATIONS)
    asked = {"text": "<image>what is it?", "images": [load_image(A)]}
    with torch.no_grad():  # files are sorted by name, encoders are not: features must be joined in the same order
        expected = pair.model(**BeniProcessor(pair.tokenizer, pair.composer)(**asked)).logits
        assert torch.equal(again(**AutoProcessor.from_pretrained(tmp_path)(**asked)).logits, expected)
    assert set(batch["pixel_values"]) == {"small", "large"}
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    expected = pair.model.generate(**batch, **options)
    assert torch.equal(again.generate(**batch, **options), expected)
    alone = [pair.model.generate(**inputs(pair, (sample,)), **options)[0, -4:] for sample in CONVERSATIONS]
    assert expected[:, -4:].tolist() == [row.tolist() for row in alone]
    beams = pair.model.generate(**batch, **options, num_beams=2)
    assert beams.shape[0] == len(CONVERSATIONS)


def test_other_grids_are_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a module was made")

    coarse = LARGER | {"merge": 2}
    monkeypatch.setattr(torch.nn.Module, "__init__", forbidden)
    with pytest.raises(IncompatiblePartsError, match=r"Mlp.*small 4x4, large 2x2.*grids agree"):
        make("inline", encoders={"small": ENCODER, "large": coarse})


def test_a_connector_of_one_encoder_says_so() -> None:
    with pytest.raises(IncompatiblePartsError, match=r"'dragonfly' works on the crops of one encoder.*small, large"):
        make("inline-dragonfly", encoders={"small": ENCODER, "large": LARGER})


def test_features_that_do_not_agree_with_their_specs_are_refused() -> None:
    specs = {"a": spec(4), "b": spec(6, side=64)}
    with pytest.raises(IncompatiblePartsError, match="a 4x4, b 8x8"):
        Mlp.check(Mlp.Config(), view(), specs)
    assert issubclass(Mlp, Connector)


def view() -> Any:
    from beni_plugins.views.single import Single, SingleConfig

    return Single(SingleConfig())
