"""A document: token ids with room for images, its targets, and the head it may share."""

import numpy as np
import pytest

from beni.data.document import IGNORE, Document
from beni.errors import DataError
from beni.sample import Sample, Turn, vqa_sample
from tests.conftest import MakePicture
from tests.core.data.tiny import composer, deep, llama_like


def targets(document: Document) -> str:
    return llama_like().decode(document.labels[document.labels != IGNORE])


def test_images_take_the_positions_they_were_promised(picture: MakePicture) -> None:
    make = composer(visual_tokens=5)
    document = make.compose(vqa_sample("a", picture(), "what?", "cat"))
    [image] = document.images
    at = np.flatnonzero(document.ids == make.image_token)
    assert at.tolist() == list(range(image.at, image.at + 5)) and image.counts == (5,)
    assert targets(document) == "cat</s>"
    assert ((document.labels == document.ids) | (document.labels == IGNORE)).all()


def test_a_deep_fusion_has_one_placeholder_per_image(picture: MakePicture) -> None:
    make = composer(visual_tokens=5, fusion=deep())
    turns = (Turn("user", (0, 1, "same?")), Turn("assistant", ("no",)))
    document = make.compose(Sample("a", turns, (picture(1), picture(2))))
    assert (
        np.flatnonzero(document.ids == make.image_token).tolist() == [image.at for image in document.images] == [1, 2]
    )


def test_the_head_ends_behind_the_last_image_and_holds_no_target(picture: MakePicture) -> None:
    make, image = composer(), picture()
    document = make.compose(vqa_sample("a", image, "what?", "cat"))
    assert document.head == 1 + 3  # BOS and the image
    other = make.compose(vqa_sample("b", image, "where?", "here"))
    assert other.head_key == document.head_key != 0
    assert make.compose(vqa_sample("c", picture(9), "what?", "cat")).head_key != document.head_key


def test_what_cannot_share_its_head(picture: MakePicture) -> None:
    one, two = picture(1), picture(2)
    talk = (Turn("user", (0, "a?")), Turn("assistant", ("b",)), Turn("user", (1, "c?")), Turn("assistant", ("d",)))
    alone = {
        "an answer before the last image": Sample("a", talk, (one, two)),
        "an answer right behind the image": Sample("b", (Turn("text", (0, "caption")),), (one,)),
        "no image": Sample("c", (Turn("user", ("a?",)), Turn("assistant", ("b",)))),
        "nothing behind the image": Sample("d", (Turn("text", ("caption ", 0)),), (one,)),
    }
    for why, sample in alone.items():
        document = composer().compose(sample)
        assert (document.head, document.head_key) == (0, 0), why


def test_different_text_before_an_image_is_another_head(picture: MakePicture) -> None:
    image = picture()
    keys = {
        composer().compose(Sample("a", (Turn("user", (text, 0, "?")), Turn("assistant", ("b",))), (image,))).head_key
        for text in ("look: ", "see: ")
    }
    assert len(keys) == 2


def test_a_prompt_is_the_beginning_of_its_document(picture: MakePicture) -> None:
    sample = vqa_sample("a", picture(), "what?", "cat")
    whole, prompt = composer().compose(sample), composer().compose(sample, prompt_only=True)
    assert (whole.ids[: len(prompt)] == prompt.ids).all() and (prompt.labels == IGNORE).all()
    assert [i.at for i in prompt.images] == [i.at for i in whole.images]


def test_bad_samples_are_refused_by_id(picture: MakePicture) -> None:
    with pytest.raises(DataError, match=r"sample 'a'.*answer is empty"):
        composer().compose(vqa_sample("a", picture(), "what?", ""))
    with pytest.raises(DataError, match="sample 'b' has nothing to learn"):
        composer().compose(Sample("b", (Turn("text", ("x",)),)))
    with pytest.raises(DataError, match="sample 'c' is 15 tokens long, a row holds 14"):
        composer(max_tokens=14).compose(vqa_sample("c", picture(), "what?", "cat"))
    assert composer(max_tokens=15).compose(vqa_sample("c", picture(), "what?", "cat"))
    with pytest.raises(DataError, match=r"^sample 'd': a\.tar: d\.json is not JSON$"):
        composer().compose(Sample.unusable("d", "a.tar: d.json is not JSON"))


def test_samples_place_every_image_once(picture: MakePicture) -> None:
    for content in (("no place",), (0, 0), (1,), (0, 1)):
        with pytest.raises(DataError, match="sample 'a' places"):
            Sample("a", (Turn("user", content), Turn("assistant", ("b",))), (picture(),))
    with pytest.raises(DataError, match="sample 'a' has no turns"):
        Sample("a", ())
