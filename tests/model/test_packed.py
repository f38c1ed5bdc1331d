"""Documents packed into one row are computed as if each were alone."""

import re
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from beni.data.batch import pack
from beni.data.document import Document
from beni.errors import PluginError
from beni.model.build import Built
from beni.sample import Sample
from beni.types import count_of
from tests.model.small import CONVERSATIONS, A, B, C, D, E, change_images, distinct_crops, inputs, make, noise, talk

TOLERANCE = 1e-6
"""Relative to the largest value, of models in double precision; norms and losses are computed in fp32 there too."""
TOLERANCE_FP32 = 1e-5
Trees = Sequence[Sequence[Document]]


@pytest.fixture
def precise(built: Built) -> Iterator[Built]:
    """The model in double precision: in fp32, what is left of rounding depends on the processor, and on some it is as
    large as what is looked for."""
    built.model.double()
    yield built
    built.model.float()


def documents(built: Built, *samples: Sample) -> list[Document]:
    return [built.composer.compose(sample) for sample in samples]


def target_logits(built: Built, trees: Trees) -> tuple[Tensor, Tensor]:
    """(loss, logits where there are targets) of a row; gradients are added to the model's."""
    seen: list[Tensor] = []
    handle = built.model.llm.register_forward_hook(lambda module, args, out: seen.append(out.logits[0]))
    try:
        loss = built.model(packed=pack(trees, built.composer)).loss
    finally:
        handle.remove()
    loss.backward()
    return loss.detach(), seen[0].detach()


def gradients(built: Built) -> dict[str, Tensor]:
    found = {}
    for name, parameter in built.model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        found[name] = parameter.grad.clone()
    built.model.zero_grad()
    return found


def assert_near(found: Tensor, expected: Tensor, what: str, tolerance: float, scale: float = 0.0) -> None:
    """`scale`: below this, values are rounding errors of sums of larger ones."""
    error = (found - expected).abs().max() / max(float(expected.abs().max()), scale)
    assert error < tolerance, f"{what} differs by {error:.1e} of its largest value"


def test_equals_separate(precise: Built) -> None:
    assert_equals_separate(precise, TOLERANCE)


@pytest.mark.parametrize("fusion", ["inline", "xattn"])
def test_equals_separate_as_trained(fusion: str, built_by: Callable[[str], Built]) -> None:
    """In fp32, too."""
    built_by(fusion).model.zero_grad()
    assert_equals_separate(built_by(fusion), TOLERANCE_FP32)


def assert_equals_separate(built: Built, tolerance: float) -> None:
    """Loss, logits and every gradient of several packings are those of the documents one by one."""
    docs = documents(built, *CONVERSATIONS)
    what, many, colour, text, three, turns = docs
    assert what.head and what.head_key == many.head_key == colour.head_key

    alone = [target_logits(built, [[doc]]) for doc in docs]
    loss = torch.stack([each for each, _ in alone]).sum()
    wanted = gradients(built)
    scale = max(float(gradient.abs().max()) for gradient in wanted.values()) / 50

    packings: list[Trees] = [
        [[doc] for doc in docs],
        [[what, many, colour], [text], [three], [turns]],
        [[turns], [text], [many, what], [three], [colour]],
    ]
    for trees in packings:
        found, logits = target_logits(built, trees)
        order = [docs.index(doc) for tree in trees for doc in tree]
        assert_near(found, loss, "the loss", tolerance)
        assert_near(logits, torch.cat([alone[i][1] for i in order]), "logits", tolerance)
        for name, gradient in gradients(built).items():
            assert_near(gradient, wanted[name], f"the gradient of {name}", tolerance, scale)


def test_images_of_other_documents_do_not_matter(precise: Built) -> None:
    first, text = documents(precise, CONVERSATIONS[0], CONVERSATIONS[3])
    near, far = (
        documents(precise, talk("x", (0, 1, "compare"), ("same",), images=pair))[0] for pair in ((B, C), (D, noise(9)))
    )
    count = int((first.labels >= 0).sum() + (text.labels >= 0).sum())
    one = target_logits(precise, [[first], [text], [near]])[1]
    other = target_logits(precise, [[first], [text], [far]])[1]
    torch.testing.assert_close(one[:count], other[:count], rtol=0, atol=1e-9)
    assert (one[count:] - other[count:]).abs().max() > 1e-4, "the last document's own images matter"


def test_siblings_do_not_matter(precise: Built) -> None:
    what, many, colour = documents(precise, *CONVERSATIONS[:3])
    count = int((what.labels >= 0).sum())
    one = target_logits(precise, [[what, many]])[1][:count]
    other = target_logits(precise, [[what, colour]])[1][:count]
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_text_before_an_image_does_not_see_it(built: Built) -> None:
    batch = inputs(built, (CONVERSATIONS[5],))
    begin = int(batch["image_starts"][0].nonzero()[1])  # of the second image
    crops = distinct_crops(built, (talk("second", (0,), images=(E,)),))
    changed = change_images(batch, lambda pixels: torch.cat([pixels[:-crops], pixels[-crops:] + 1.0]))
    with torch.no_grad():
        one, other = built.model(**batch).logits[0], built.model(**changed).logits[0]
    torch.testing.assert_close(one[:begin], other[:begin], rtol=0, atol=1e-6)
    assert (one[-1] - other[-1]).abs().max() > 1e-4, "text behind the image sees it"


def test_a_row_without_images_sends_zero_gradients(built: Built) -> None:
    target_logits(built, [documents(built, CONVERSATIONS[3])])
    for name, gradient in gradients(built).items():
        if name.startswith(("encoders.", "connector.")) or ".to_" in name or name.endswith("attn_gate"):
            assert (gradient == 0).all(), f"{name} has a gradient from a dummy image"
        elif name.startswith("llm."):
            assert gradient.isfinite().all()


def test_the_dummy_changes_nothing(built: Built) -> None:
    [text] = documents(built, CONVERSATIONS[3])
    alone, logits = target_logits(built, [[text]])
    beside, _ = target_logits(built, [documents(built, CONVERSATIONS[0]), [text]])
    with_image, _ = target_logits(built, [documents(built, CONVERSATIONS[0])])
    torch.testing.assert_close(alone, beside - with_image, rtol=1e-5, atol=1e-4)
    padded = inputs(built, (CONVERSATIONS[3],), prompt_only=False)
    keep = torch.from_numpy(text.labels[1:] >= 0).nonzero()[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(built.model(**padded).logits[0, keep], logits, rtol=1e-5, atol=1e-5)


def test_one_image_many_times_is_encoded_once(built: Built) -> None:
    crops: list[int] = []
    encoder = built.model.encoders["main"]
    handle = encoder.register_forward_pre_hook(lambda module, args: crops.append(len(args[0])))
    target_logits(built, [[doc] for doc in documents(built, *CONVERSATIONS)])
    handle.remove()
    assert crops == [distinct_crops(built, CONVERSATIONS)]


def test_a_connector_that_lies_is_named(built: Built) -> None:
    connector = built.model.connector
    honest = connector.deliver
    connector.deliver = lambda tokens, *rest: honest(tokens[:-1], *rest)  # type: ignore[method-assign]
    try:
        with pytest.raises(PluginError, match=rf"{type(connector).__name__} returned") as caught:
            built.model(packed=pack([documents(built, CONVERSATIONS[0])], built.composer))
        numbers = re.search(r"returned \((\d+), .* declared (\d+)", str(caught.value))
        assert numbers and int(numbers[1]) == int(numbers[2]) - 1
    finally:
        del connector.deliver


def test_a_connector_that_lies_about_its_crops_is_named() -> None:
    """Before tiles are put together to a map, which may hide a token too few."""
    built = make("inline-anyres")
    connector, layout = built.model.connector, built.composer.layout(A)
    declared = sum(map(count_of, built.composer.connector.outs(layout, built.composer.encoders)))
    honest = connector.project
    connector.project = lambda features: honest(features)[:-1]  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=rf"Concat returned .*{declared - 1}.*declared {declared}.*`out_grid`"):
        built.model(packed=pack([documents(built, CONVERSATIONS[0])], built.composer))


def test_fresh_cross_attention_is_the_plain_language_model() -> None:
    built = make("xattn", gates=0.0)
    batch = inputs(built, CONVERSATIONS)
    embeds = built.model.new_tokens.embed(batch["input_ids"], built.model.get_input_embeddings())
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = built.model.llm(
            inputs_embeds=embeds, attention_mask=batch["attention_mask"], position_ids=positions
        ).logits
        assert torch.equal(built.model(**batch).logits, plain)


def test_padded_loss_is_the_mean_of_the_packed_one(built: Built) -> None:
    docs = documents(built, *CONVERSATIONS)
    batch = inputs(built, CONVERSATIONS, prompt_only=False)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, doc in zip(labels, docs, strict=True):
        row[len(row) - len(doc) :] = torch.from_numpy(doc.labels)
    packed = pack([[doc] for doc in docs], built.composer)
    with torch.no_grad():
        mean = built.model(packed=packed).loss / packed.stats.targets
        torch.testing.assert_close(built.model(**batch, labels=labels).loss, mean, rtol=1e-5, atol=1e-6)


def test_equal_images_of_two_documents_share_gradients(built_by: Callable[[str], Built]) -> None:
    """The visual tokens of an image shown twice sum what both showings send back."""
    built = built_by("inline")
    docs = documents(
        built, talk("p", (0, "what?"), ("cat",), images=(A,)), talk("q", ("x", 0, "how?"), ("blue",), images=(A,))
    )
    for doc in docs:
        target_logits(built, [[doc]])
    wanted = gradients(built)["connector.layers.0.weight"]
    target_logits(built, [[doc] for doc in docs])
    assert_near(gradients(built)["connector.layers.0.weight"], wanted, "the connector's gradient", TOLERANCE)
