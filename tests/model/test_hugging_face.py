"""What people do with a Hugging Face model: chats, pipelines, all ways to generate, loading and saving again."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, pipeline
from transformers.pipelines.base import pad_collate_fn

from beni.data.images import load_image
from beni.errors import DataError
from beni.model.build import Built
from beni.model.chats import conversation, picture_ref
from beni.model.processing import BeniProcessor
from beni.sample import ImageRef, Sample
from tests.model.small import CONVERSATIONS, A, B, inputs
from tests.model.test_generation import NEW, generate
from tests.model.test_saved import save

Chat = list[dict[str, Any]]
UNLIKE = ("inline-anyres", "xattn", "xattn-all", "sva", "deepstack")
"""Fusions that work in different ways while tokens are decoded."""
GREEDY: dict[str, Any] = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW}


def processor_of(built: Built) -> BeniProcessor:
    return BeniProcessor(built.tokenizer, built.composer)


def asked(text: str, *images: Any) -> Chat:
    """A question about images, which stand in front of it."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def as_chat(sample: Sample) -> Chat:
    """A conversation as chats are written, up to where the model has to answer."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": load_image(sample.images[part])}
                if isinstance(part, int)
                else {"type": "text", "text": part}
                for part in turn.content
            ],
        }
        for turn in sample.turns[:-1]
    ]


def prompt(processor: BeniProcessor, chat: Any, **options: Any) -> Any:
    options = {"add_generation_prompt": True} | options
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, **options)


# --------------------------------------------------------------------------------------------------------- processor


def test_chats_have_the_tokens_of_training(built: Built) -> None:
    """Several in a batch, with several turns, several images, and none."""
    batch, wanted = prompt(processor_of(built), [as_chat(s) for s in CONVERSATIONS]), inputs(built, CONVERSATIONS)
    for name in ("input_ids", "attention_mask", "image_sizes"):
        assert torch.equal(batch[name], wanted[name]), name
    assert torch.equal(batch["image_starts"] > 0, wanted["image_starts"] > 0)


def test_a_whole_conversation_too(built_by: Any) -> None:
    built = built_by("inline")
    sample = CONVERSATIONS[5]
    chat = [*as_chat(sample), {"role": "assistant", "content": sample.answer}]
    found = prompt(processor_of(built), chat, add_generation_prompt=False)["input_ids"]
    assert torch.equal(found, inputs(built, (sample,), prompt_only=False)["input_ids"])


def test_an_answer_is_continued_and_not_ended(built_by: Any) -> None:
    built = built_by("inline")
    processor = processor_of(built)
    begun = [*asked("what is it?"), {"role": "assistant", "content": [{"type": "text", "text": "a c"}]}]
    going_on = {"add_generation_prompt": False, "continue_final_message": True}
    ids = prompt(processor, begun, **going_on)["input_ids"][0].tolist()
    assert ids == [*prompt(processor, begun[:1])["input_ids"][0].tolist(), *processor._tokenize("a c")]
    text = processor.apply_chat_template(begun, **going_on)
    assert text.endswith("a c") and built.tokenizer.eos_token not in text


def test_images_come_in_many_ways(built_by: Any, tmp_path: Path) -> None:
    """The same picture: open, at a path, as bytes, as an array, in base64, in a URL of its own; as OpenAI has it."""
    processor = processor_of(built_by("inline"))
    picture: Image.Image = load_image(A)
    file = io.BytesIO()
    picture.save(file, "png")
    path, text = tmp_path / "a.png", base64.b64encode(file.getvalue()).decode()
    path.write_bytes(file.getvalue())
    wanted = prompt(processor, asked("what?", picture))["pixel_values"]
    array = np.array(picture)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for image in (str(path), path, file.getvalue(), array, tensor, f"data:image/png;base64,{text}"):
        assert torch.equal(prompt(processor, asked("what?", image))["pixel_values"], wanted), type(image)
        assert torch.equal(processor(images=image, text="<image>what?")["pixel_values"], wanted), type(image)
    entries: list[dict[str, Any]] = [
        {"type": "image", "path": str(path)},
        {"type": "image", "base64": text},
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "image_url", "image_url": str(path)},
    ]
    for entry in entries:
        chat = [{"role": "user", "content": [entry, {"type": "text", "text": "what?"}]}]
        assert torch.equal(prompt(processor, chat)["pixel_values"], wanted), entry


def test_images_may_stand_beside_a_rendered_chat(built_by: Any) -> None:
    """As processors elsewhere are used: the text first, then both together."""
    processor = processor_of(built_by("inline"))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    batch = processor(images=load_image(A), text=text, return_tensors="pt", padding=True)
    wanted = prompt(processor, asked("what?", load_image(A)))
    assert torch.equal(batch["input_ids"], wanted["input_ids"])
    with pytest.raises(DataError, match=r"entry of the type image has none: it wants one of image, url"):
        prompt(processor, chat)


def test_a_mark_in_what_people_say_is_text(built_by: Any) -> None:
    built = built_by("inline")
    ids = prompt(processor_of(built), asked("what is <image>?"))["input_ids"]
    assert built.composer.image_token not in ids
    assert "<image>" in built.tokenizer.decode(ids[0])


@pytest.mark.parametrize(
    ("chat", "options", "why"),
    [
        ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], {}, r"type 'video': .* text and images"),
        ([{"role": "judge", "content": "hm"}], {}, r"role 'judge': there are .*user"),
        (asked("hm", 3), {}, r"a int is no image"),
        (asked("hm", np.zeros((2, 3, 5, 7))), {}, r"array of the shape \(2, 3, 5, 7\) is no image"),
        (asked("hm", "data:image/png;base64,?"), {}, r"not valid base64"),
        (asked("hm"), {"truncation": True}, r"cannot do truncation=True"),
        (asked("hm"), {"max_length": 4}, r"cannot do max_length=4"),
        (asked("hm"), {"return_tensors": "np"}, r"cannot do return_tensors='np'"),
        (asked("hm"), {"tools": [1]}, r"cannot do tools="),
        (asked("hm"), {"processor_kwargs": {"padding": "max_length"}}, r"cannot do padding='max_length'"),
        (asked("hm"), {"add_generation_prompt": False}, r"ends without an answer: with add_generation_prompt=True"),
        (asked("hm"), {"continue_final_message": True}, r"add_generation_prompt begins .* choose"),
    ],
)
def test_what_would_be_ignored_is_refused(built_by: Any, chat: Chat, options: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        prompt(processor_of(built_by("inline")), chat, **options)


def test_images_alone_are_refused(built_by: Any) -> None:
    with pytest.raises(DataError, match="no text: with images alone, write <image> for each"):
        processor_of(built_by("inline"))(images=[load_image(A)])


def test_answers_are_decoded(built_by: Any) -> None:
    built = built_by("inline")
    processor = processor_of(built)
    ids = torch.tensor([[1, *processor._tokenize("a cat"), built.tokenizer.eos_token_id]])
    assert processor.decode(ids[0], skip_special_tokens=True) == "a cat"
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["a cat"]
    assert processor.post_process_image_text_to_text(ids) == ["a cat"]


# ---------------------------------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize("fusion", UNLIKE)
def test_rows_batched_by_transformers_equal_one_by_one(built_by: Any, fusion: str) -> None:
    """Its pipelines pad and concatenate inputs, name by name, and know nothing of images."""
    built = built_by(fusion)
    rows = [inputs(built, (sample,)) for sample in CONVERSATIONS]
    batch = pad_collate_fn(built.tokenizer, processor_of(built))(rows)
    alone = torch.cat([generate(built, row) for row in rows])
    assert generate(built, batch).tolist() == alone.tolist()


@pytest.mark.parametrize("fusion", ["xattn", "sva"])
def test_the_pipeline_answers_in_batches(built_by: Any, fusion: str, tmp_path: Path) -> None:
    """Chats with an image at a path, with two, with none; for one encoder and for two."""
    built = built_by(fusion)
    load_image(B).save(tmp_path / "b.png")
    answer = pipeline("image-text-to-text", model=str(save(built, tmp_path / "model")))
    chats = [
        asked("what is it?", load_image(A)),
        asked("hello there"),
        asked("how many?", str(tmp_path / "b.png"), load_image(A)),
        [{"role": "user", "content": "hello"}],
    ]
    options: dict[str, Any] = {"return_full_text": False, "generate_kwargs": GREEDY}
    one_by_one, together = answer(text=chats, **options), answer(text=chats, batch_size=4, **options)
    texts = [[given["generated_text"] for given in row] for row in one_by_one]
    assert texts == [[given["generated_text"] for given in row] for row in together]
    new = generate(built, prompt(processor_of(built), chats))
    assert texts == [[text] for text in built.tokenizer.batch_decode(new, skip_special_tokens=True)]
    several = answer(
        text=chats[0], return_full_text=False, generate_kwargs=GREEDY | {"num_beams": 2, "num_return_sequences": 2}
    )
    assert len(several) == 2
    begun = [*chats[0], {"role": "assistant", "content": [{"type": "text", "text": "a c"}]}]
    [full] = answer(text=begun, generate_kwargs=GREEDY)
    said = full["generated_text"][-1]
    assert said["role"] == "assistant" and str(said["content"]) != str(begun[-1]["content"])


# ---------------------------------------------------------------------------------------------------------- generate


@pytest.mark.parametrize("fusion", UNLIKE)
def test_tokens_looked_up_in_the_prompt_change_nothing(built_by: Any, fusion: str) -> None:
    """Assisted decoding reads several tokens in a step and takes some back."""
    built = built_by(fusion)
    for sample in CONVERSATIONS[3:5]:
        batch = inputs(built, (sample,))
        assert generate(built, batch, prompt_lookup_num_tokens=2).tolist() == generate(built, batch).tolist()


@pytest.mark.parametrize("fusion", UNLIKE)
def test_ways_to_generate(built_by: Any, fusion: str) -> None:
    built = built_by(fusion)
    batch = inputs(built, CONVERSATIONS[:1])
    greedy = generate(built, batch).tolist()
    assert generate(built, batch, cache_implementation="static").tolist() == greedy
    assert generate(built, batch, assistant_model=built.model).tolist() == greedy
    assert generate(built, batch, guidance_scale=1.5).shape == (1, NEW)
    assert generate(built, batch, num_beams=3, do_sample=True).shape == (1, NEW)


def test_answers_stop_at_strings(built_by: Any) -> None:
    built = built_by("inline")
    batch = inputs(built, CONVERSATIONS[:1])
    whole = generate(built, batch).tolist()[0]
    first = built.tokenizer.decode(whole[:1])
    assert first.isascii(), "a poor example: half a character"
    stopped = generate(built, batch, stop_strings=[first], tokenizer=built.tokenizer, min_new_tokens=0)
    assert stopped.tolist() == [whole[:1]]


def test_text_behind_a_cache_is_read_on(built_by: Any) -> None:
    built = built_by("inline")
    batch = inputs(built, CONVERSATIONS[3:4])
    before = built.model.generate(**batch, **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([before.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    whole = {"input_ids": longer, "attention_mask": torch.ones_like(longer)}
    assert generate(built, whole, cache=before.cache).tolist() == generate(built, whole).tolist()


@pytest.mark.parametrize("fusion", ["inline", "xattn"])
def test_images_behind_a_cache_are_refused(built_by: Any, fusion: str) -> None:
    """What a deep fusion reads of them is in no cache."""
    built = built_by(fusion)
    batch = inputs(built, CONVERSATIONS[:1])
    before = built.model.generate(**batch, **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([before.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    whole = batch | {"input_ids": longer, "attention_mask": torch.ones_like(longer)}
    with pytest.raises(DataError, match=r"cache .* holds \d+ tokens, .* give the whole conversation"):
        generate(built, whole, cache=before.cache)


# --------------------------------------------------------------------------------------------------- load, and save


def test_loads_as_transformers_loads_models(built_by: Any, tmp_path: Path) -> None:
    """From a folder inside another, on a device, in half precision; and what is saved again is the same model."""
    built = built_by("sva")
    save(built, tmp_path / "hub" / "model")
    where: dict[str, Any] = {"subfolder": "model"}
    processor = AutoProcessor.from_pretrained(tmp_path / "hub", **where)
    model = AutoModelForMultimodalLM.from_pretrained(
        tmp_path / "hub", **where, device_map="cpu", low_cpu_mem_usage=True
    )
    model.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    processor.save_pretrained(tmp_path / "again")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    batch = prompt(AutoProcessor.from_pretrained(tmp_path / "again"), [as_chat(sample) for sample in CONVERSATIONS])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, built.model(**batch).logits)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path / "again", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.generate(**batch.to(dtype=half.dtype), **GREEDY).shape[0] == len(CONVERSATIONS)


def test_an_image_has_one_name(built_by: Any) -> None:
    """The same bytes are the same image, wherever a batch shows them."""
    batch = prompt(processor_of(built_by("inline")), [asked("a", load_image(A)), asked("b", load_image(A))])
    assert len(batch["image_ids"]) == 1
    assert batch["image_starts"].max(1).values.tolist() == batch["image_ids"].tolist() * 2
    assert ImageRef(path="a").key != ImageRef(path="b").key


@pytest.mark.parametrize("kind", ["turned", "palette"])
def test_an_open_image_is_the_picture_that_its_file_is(kind: str, tmp_path: Path) -> None:
    """Turned by EXIF, on white where it is transparent."""
    colours = np.random.default_rng(0).integers(0, 255, (6, 10, 3), dtype=np.uint8)
    image, file = Image.fromarray(colours), tmp_path / "a.png"
    if kind == "turned":
        exif = image.getexif()
        exif[0x112] = 6
        image.save(file, exif=exif)
    else:
        image.convert("P").save(file, transparency=3)
    of_file = load_image(picture_ref(file))
    assert of_file.size == ((6, 10) if kind == "turned" else (10, 6))
    assert np.array_equal(load_image(picture_ref(Image.open(file))), of_file)


@pytest.mark.parametrize("chat", [[{"content": "hi"}], [{"role": "user", "content": ["hi"]}]])
def test_malformed_chats_are_told(chat: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match="a message"):
        conversation(chat)
