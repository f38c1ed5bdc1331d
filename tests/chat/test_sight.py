"""Heat maps show the weights that the model computed with, where their tokens are in the picture."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from beni.chat.conversation import Conversation
from beni.chat.sight import Looks, Sight, look
from beni.chat.talker import Said, Talker
from beni.data.batch import Pictures, distinct
from beni.data.images import load_image
from beni.data.padded import pad
from beni.eval.generate import Sampling
from beni.sample import ImageRef
from beni.types import Size
from tests.chat.small import talker
from tests.model.small import FUSIONS, A, B, C, noise
from tests.nn.test_places import telling

ASKED = Conversation().ask("what is it?", [A]).answer("a cat").ask("compare", [B, C])
SIZES = [Size(*load_image(ref).size) for ref in (A, B, C)]


def looked(one: Talker, asked: Conversation = ASKED, words: int = 5) -> tuple[Looks, Said]:
    *_, said = one.answer(asked, Sampling(words))
    return look(one, asked, said), said


def named(looks: Looks, name: str) -> Sight:
    [found] = [sight for sight in looks.sights if sight.name == name]
    return found


def total(sight: Sight, **which: int) -> float:
    return sum(float(sight.heat(number, size, **which).sum()) for number, size in enumerate(SIZES))


@pytest.mark.parametrize("parts", FUSIONS)
def test_weights_sum_to_one_at_most(parts: str) -> None:
    looks, _ = looked(talker(parts))
    assert bool(looks.sights) != bool(looks.why_none)
    for sight in looks.sights:
        assert (sight.weights_LAS >= 0).all()
        assert (sight.weights_LAS.sum(-1) <= 1 + 1e-5).all()
        assert 0 < total(sight) <= 1 + 1e-5
        assert len(sight.spots.places) == sight.weights_LAS.shape[-1] == len(sight.spots.picture_S)


def test_cross_attention_to_squashed_pictures_is_all_on_them() -> None:
    looks, _ = looked(talker("xattn", connector={"name": "concat"}, fusion=FUSIONS["xattn-all"]["fusion"]))
    [sight] = looks.sights
    assert total(sight) == pytest.approx(1, abs=1e-5)
    heats = [sight.heat(number, size, layer=1, word=2) for number, size in enumerate(SIZES)]
    assert sum(heat.sum() for heat in heats) == pytest.approx(1, abs=1e-5)
    assert all(heat.sum() > 0 for heat in heats)


def test_cross_attention_is_what_generation_computed() -> None:
    """Queries and keys are caught while the answer is generated, step by step with a cache."""
    one = talker("xattn", connector={"name": "mlp"})
    caught: dict[int, list[tuple[Tensor, Tensor]]] = {}
    handles: list[Any] = []
    for layer, block in enumerate(one.model.fusion.layers.values()):  # type: ignore[union-attr, operator]
        queries: list[Tensor] = []
        handles.append(block.to_q.register_forward_hook(lambda m, a, out, into=queries: into.append(out[0, -1])))
        handles.append(
            block.to_kv.register_forward_hook(
                lambda m, a, out, q=queries, n=layer: caught.setdefault(n, []).append((q[-1], out.chunk(2, -1)[0]))
            )
        )
    *_, said = one.answer(ASKED, Sampling(5))
    for handle in handles:
        handle.remove()
    [sight] = look(one, ASKED, said).sights
    heads, count = 2, 16
    for layer in range(3):
        for word in range(sight.weights_LAS.shape[1]):
            q, k = caught[layer][word]
            wanted = torch.zeros(3 * count)
            for head in range(heads):
                at = slice(head * 8, head * 8 + 8)
                scores = k[2 * count :, at] @ q[at] * 8**-0.5  # the last picture is read
                wanted[2 * count :] += scores.softmax(0) / heads
            torch.testing.assert_close(sight.weights_LAS[layer, word], wanted, rtol=1e-4, atol=1e-6)


def test_latents_hand_on_what_they_read() -> None:
    """What the answer reads of latents, times what latents read of the picture."""
    one = talker("xattn")
    looks, _ = looked(one)
    by_latents = named(looks, "answer, by cross-attention")
    layout = one.composer.view.layout(SIZES[0], one.composer.encoders)
    assert one.composer.connector.places(layout, one.composer.encoders) == [None] * 4
    wanted = _memory_weights(one) @ _latent_weights(one)
    torch.testing.assert_close(by_latents.weights_LAS, wanted, rtol=1e-4, atol=1e-6)
    own = named(looks, "visual tokens, in the connector")
    torch.testing.assert_close(own.weights_LAS[0, 0], _latent_weights(one).mean(0))


def _memory_weights(one: Talker) -> Tensor:
    """[L, A, V] of the last picture's latents, from queries and keys that are caught in one whole pass."""
    *_, said = one.answer(ASKED, Sampling(5))
    words = said.ids[:-1] if said.ids[-1] in one.composer.template.stop_ids else said.ids
    document = one.prompt(ASKED)
    batch = _padded(one, said)
    caught: list[Tensor] = []
    layers: list[Any] = list(one.model.fusion.layers.values())  # type: ignore[union-attr, operator, arg-type]
    handles = [
        part.register_forward_hook(lambda m, a, out: caught.append(out)) for b in layers for part in (b.to_q, b.to_kv)
    ]
    with torch.no_grad():
        one.model(**batch)
    for handle in handles:
        handle.remove()
    found = torch.zeros(len(layers), len(words), 12)
    for layer in range(len(layers)):
        q_TH, k_MH = caught[2 * layer][0], caught[2 * layer + 1].chunk(2, -1)[0]
        for word in range(len(words)):
            for head in range(2):
                at = slice(head * 8, head * 8 + 8)
                scores = k_MH[8:, at] @ q_TH[len(document) - 1 + word, at] * 8**-0.5
                found[layer, word, 8:] += scores.softmax(0) / 2
    return found


def _latent_weights(one: Talker) -> Tensor:
    """[V, N] what the latents of three pictures read of their own picture's tokens."""
    [attention, _] = one.model.connector.resampler.layers[0]  # type: ignore[union-attr, index, misc]
    caught: dict[str, Tensor] = {}
    handles = [
        getattr(attention, name).register_forward_hook(lambda m, a, out, name=name: caught.update({name: out}))
        for name in ("to_q", "to_kv")
    ]
    with torch.no_grad():
        one.model(**_padded(one, Said("", (0,))))
    for handle in handles:
        handle.remove()
    q_CQH, k_CNH = caught["to_q"], caught["to_kv"].chunk(2, -1)[0]
    found = torch.zeros(12, 48)
    for crop in range(3):
        for head in range(2):
            at = slice(head * 8, head * 8 + 8)
            weights_QN = (q_CQH[crop, :, at] @ k_CNH[crop, :, at].T * 8**-0.5).softmax(-1)
            found[4 * crop : 4 * crop + 4, 16 * crop : 16 * crop + 16] += weights_QN[:, :16] / 2
    return found


def _padded(one: Talker, said: Said) -> dict[str, Any]:
    batch = pad([one.prompt(ASKED)], Pictures(one.composer), 0)
    batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([said.ids[:-1]], dtype=torch.long)], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return batch


@pytest.mark.parametrize("parts", ["inline", "inline-anyres", "deepstack"])
def test_self_attention_is_that_of_the_language_model(parts: str) -> None:
    """As transformers' own attention tells it, at the places that visual tokens take."""
    one = talker(parts)
    looks, said = looked(one)
    [sight] = looks.sights
    batch = _padded(one, said)
    given: dict[str, Any] = {}
    handle = one.model.llm.register_forward_pre_hook(lambda m, a, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        one.model(**batch)
        handle.remove()
        one.model.llm.set_attn_implementation("eager")
        given |= {"output_attentions": True, "use_cache": False}
        attentions = one.model.llm(**given).attentions
    at = batch["input_ids"][0] == one.composer.image_token
    first = len(one.prompt(ASKED)) - 1
    for layer, weights in enumerate(attentions):
        wanted = weights[0].mean(0)[first : first + len(looks.words)][:, at]
        torch.testing.assert_close(sight.weights_LAS[layer], wanted, rtol=1e-4, atol=1e-6)


def test_a_picture_that_is_shown_twice_is_one_picture() -> None:
    one = talker("inline")
    asked = Conversation().ask("see", [A]).answer("a cat").ask("again", [A])
    looks, _ = looked(one, asked)
    assert len(looks.pictures) == 1 and len(looks.sights[0].spots.places) == 16


VIEWS = {
    "squash": {"name": "single"},
    "pad": {"name": "single", "fit": "pad"},
    "split": {"name": "split"},
    "anyres": {"name": "anyres", "merge": "flat"},
}


@pytest.mark.parametrize("parts", ["inline", "xattn"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_weight_lies_on_the_pixels_that_its_token_sees(view: str, parts: str) -> None:
    """All weight on one token: its heat lies where its patch of the crops comes from, in the right picture.

    The pictures tell their own coordinates by their colours, and the patch is read from the model's own input.
    """
    sizes = [Size(64, 48), Size(90, 40)]
    refs = [replace(_ref(telling(size)), size=size) for size in sizes]
    one = talker(parts, connector={"name": "mlp"}, view=VIEWS[view])
    looks, _ = looked(one, Conversation().ask("compare", refs), words=1)
    sight = looks.sights[0]
    pixels = _patches(one, refs)
    assert len(pixels) == sight.weights_LAS.shape[-1]
    for token in range(0, len(pixels), 3):
        hot = torch.zeros(1, 1, len(pixels))
        hot[..., token] = 1
        heats = [replace(sight, weights_LAS=hot).heat(number, size) for number, size in enumerate(sizes)]
        number = int(heats[1].sum() > heats[0].sum())
        red, green = (pixels[token, :2] * 255 / 200).tolist()
        heat, share = heats[number], heats[number].sum()
        assert heats[1 - number].sum() == 0
        if share < 0.999:
            continue  # partly padding, which has colours of its own
        rows, cols = np.indices(heat.shape)
        x, y = ((heat * (at + 0.5)).sum() / side for at, side in ((cols, heat.shape[1]), (rows, heat.shape[0])))
        assert x == pytest.approx(red, abs=0.05) and y == pytest.approx(green, abs=0.05)
        assert sight.spots.picture_S[token] == number


def _ref(picture: Image.Image) -> ImageRef:
    file = io.BytesIO()
    picture.save(file, "png")
    return ImageRef(data=file.getvalue())


def _patches(one: Talker, refs: list) -> Tensor:
    """[V, 3] mean colour, from 0 to 1, of the patch under each token of the encoder's input."""
    document = one.composer.compose(Conversation().ask("compare", refs).sample(), prompt_only=True)
    pictures = Pictures(one.composer)
    images = distinct(document.images)
    for image in images:
        pictures.load(image)
    pixels_C3HW = pictures.stack(images).pixels["main"]
    spec = one.composer.encoders["main"]
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (spec.mean, spec.std))
    colours = torch.nn.functional.avg_pool2d(pixels_C3HW * std + mean, spec.stride)
    return colours.flatten(2).permute(0, 2, 1).flatten(0, 1)


def test_padding_is_told() -> None:
    """A wide picture in a square: what lies on neither picture nor text lies on padding."""
    one = talker("xattn", connector={"name": "mlp"}, view={"name": "single", "fit": "pad"})
    wide = noise(9, Size(64, 16))
    looks, _ = looked(one, Conversation().ask("what?", [wide]), words=2)
    [sight] = looks.sights
    assert sight.weights_LAS.sum(-1).mean() == pytest.approx(1, abs=1e-5)
    assert 0.05 < sight.heat(0, Size(64, 16)).sum() < 0.95


def test_nothing_to_show_is_said_in_words() -> None:
    one = talker("inline-dragonfly")
    assert "no place in the picture" in looked(one)[0].why_none
    assert "no picture" in looked(one, Conversation().ask("hello there"))[0].why_none
    assert look(one, ASKED, Said("", ())).why_none == "Nothing was answered."
