"""Generation: padding, caches, beams and mixed numbers of images change nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from beni.data.batch import pack
from beni.errors import DataError
from beni.model.build import Built
from tests.model.small import CONVERSATIONS, change_images, distinct_crops, inputs, make

NEW = 8


def generate(built: Built, batch: dict[str, Any], **options: Any) -> Tensor:
    """New tokens only; never stops early, so that every step is compared."""
    out = built.model.generate(**batch, **{"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW} | options)
    return out[:, batch["input_ids"].shape[1] :]


def test_left_padded_rows_equal_one_by_one(built: Built) -> None:
    """Rows with 0, 1 and 3 images and of different lengths in one batch."""
    together = generate(built, inputs(built, CONVERSATIONS))
    alone = torch.cat([generate(built, inputs(built, (sample,))) for sample in CONVERSATIONS])
    assert together.tolist() == alone.tolist()
    assert len({tuple(row) for row in together.tolist()}) > 1, "a poor example: all rows answer the same"


def test_the_cache_changes_nothing(built: Built) -> None:
    batch = inputs(built, CONVERSATIONS)
    assert generate(built, batch).tolist() == generate(built, batch, use_cache=False).tolist()
    with_scores: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
    options: dict[str, Any] = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW}
    cached, fresh = (
        torch.stack(built.model.generate(**batch, **options, **with_scores, use_cache=use).logits)
        for use in (True, False)
    )
    torch.testing.assert_close(cached, fresh, rtol=1e-4, atol=1e-4)


def test_images_are_encoded_once(built: Built) -> None:
    """However many tokens, beams and rows: every distinct image goes through the encoder one time."""
    crops: list[int] = []
    hook = built.model.encoders["main"].register_forward_pre_hook(lambda module, args: crops.append(len(args[0])))
    generate(built, inputs(built, CONVERSATIONS), num_beams=2)
    hook.remove()
    assert crops == [distinct_crops(built, CONVERSATIONS)]


def test_decoding_sees_the_images(built: Built) -> None:
    """What is decoded behind the prompt equals a forward pass over the whole text, images included."""
    batch = inputs(built, CONVERSATIONS)
    tokens = generate(built, batch)
    whole = dict(
        batch,
        input_ids=torch.cat([batch["input_ids"], tokens], dim=1),
        attention_mask=torch.cat([batch["attention_mask"], torch.ones_like(tokens)], dim=1),
    )
    with torch.no_grad():
        logits = built.model(**whole).logits[:, -NEW - 1 : -1]
    logits[..., [built.tokenizer.eos_token_id, *built.model.generation_config.suppress_tokens]] = -torch.inf
    assert logits.argmax(-1).tolist() == tokens.tolist()
    blind = change_images(batch, torch.zeros_like)
    assert generate(built, blind).tolist() != tokens.tolist(), "a poor example: images do not matter"


@pytest.mark.parametrize("beams", [1, 3])
def test_beams_and_several_answers_equal_repeated_rows(built: Built, beams: int) -> None:
    batch = inputs(built, CONVERSATIONS[2:5])
    if beams == 1:
        torch.manual_seed(0)
        options: dict[str, Any] = {"do_sample": True, "temperature": 0.7}
        several = generate(built, batch, num_return_sequences=2, **options)
        torch.manual_seed(0)
        repeated = generate(built, inputs(built, tuple(s for s in CONVERSATIONS[2:5] for _ in range(2))), **options)
    else:
        several = generate(built, batch, num_beams=beams)
        repeated = torch.cat([generate(built, inputs(built, (s,)), num_beams=beams) for s in CONVERSATIONS[2:5]])
    assert several.tolist() == repeated.tolist()


def test_several_beams_are_returned_in_order_of_probability(built: Built) -> None:
    batch = inputs(built, CONVERSATIONS[2:5])
    best = generate(built, batch, num_beams=3)
    three = generate(built, batch, num_beams=3, num_return_sequences=3)
    assert three[::3].tolist() == best.tolist()
    assert all(len(set(map(tuple, three[row : row + 3].tolist()))) == 3 for row in (0, 3, 6)), "three different answers"


def test_places_of_visual_tokens_are_never_generated(built: Built) -> None:
    """They are ids without a meaning; fed back they would ask for visual tokens that nobody has."""
    head = built.model.get_output_embeddings()
    hook = head.register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, torch.tensor(built.composer.image_token), 99.0)
    )
    tokens = generate(built, inputs(built, CONVERSATIONS))
    hook.remove()
    assert built.composer.image_token not in tokens


def test_a_batch_without_images(built: Built) -> None:
    text = CONVERSATIONS[3]
    with_blank = inputs(built, (text, text))
    bare = {name: with_blank[name] for name in ("input_ids", "attention_mask")}
    assert generate(built, with_blank).tolist() == generate(built, bare).tolist()


def test_images_without_their_places_are_refused(built: Built) -> None:
    batch = inputs(built, CONVERSATIONS[:1])
    for name in ("image_sizes", "image_ids", "image_starts"):
        with pytest.raises(DataError, match=rf"{name}.*processor"):
            generate(built, {key: value for key, value in batch.items() if key != name})


def encoded(built: Built, batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with what the encoders make of its images."""
    pixels = batch["pixel_values"]
    by_key = pixels if isinstance(pixels, dict) else {"main": pixels}
    with torch.no_grad():
        features = {key: encoder(by_key[key]) for key, encoder in built.model.encoders.items()}
    return {name: value for name, value in batch.items() if name != "pixel_values"} | {"image_features": features}


def test_features_in_place_of_pixels_change_nothing(built: Built) -> None:
    """Greedy and in beams."""
    batch = inputs(built, CONVERSATIONS)
    for options in ({}, {"num_beams": 3}):
        expected = generate(built, batch, **options).tolist()
        assert generate(built, encoded(built, batch), **options).tolist() == expected


def test_features_beside_pixels_or_of_other_encoders_are_refused(built: Built) -> None:
    batch = encoded(built, inputs(built, CONVERSATIONS[:1]))
    with pytest.raises(DataError, match="the same images twice"):
        generate(built, batch | {"pixel_values": inputs(built, CONVERSATIONS[:1])["pixel_values"]})
    with pytest.raises(DataError, match=r"of the encoders none, and the model has main"):
        generate(built, batch | {"image_features": {}})


def test_images_and_places_must_agree(built_by: Any) -> None:
    built = built_by("inline")
    batch = inputs(built, CONVERSATIONS[:1])
    places = int((batch["input_ids"] == built.composer.image_token).sum())
    with pytest.raises(DataError, match=rf"{places} places .* images give 0"):
        generate(built, batch | {"image_starts": torch.zeros_like(batch["image_starts"])})
    with pytest.raises(DataError, match=r"row 0 .* not among its pixel_values"):
        generate(built, batch | {"image_ids": batch["image_ids"] + 1})
    text = torch.ones_like(batch["input_ids"])
    with pytest.raises(DataError, match=rf"0 places .* images give {places}"):
        generate(built, batch | {"input_ids": text})


def values(module: nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(child)) for name, child in module.named_modules()}


def test_nothing_stays_on_modules_when_training_is_interrupted() -> None:
    """An evaluation between two training steps leaves no trace: not in attributes, not in the next gradient."""
    first, second = make("xattn"), make("xattn")
    row = pack([[first.composer.compose(sample)] for sample in CONVERSATIONS], first.composer)
    for built in (first, second):
        built.model.train()
        built.model(packed=row).loss.backward()
    before = values(first.model)
    first.model.eval()
    generate(first, inputs(first, CONVERSATIONS[:3]))
    first.model.train()
    assert values(first.model) == before
    for built in (first, second):
        built.model(packed=row).loss.backward()
    for (name, one), (_, other) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]
