"""Generation sees the tokens of training; labels are the answers and their ends, and nothing else."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from beni.data.template import BUILT_IN, Piece, Template, template_source
from beni.errors import ConfigError, DataError
from beni.sample import Turn
from tests.core.data.tiny import CHATML, byte_tokenizer, llama_like

# like many published ones: a default system turn, trimmed contents, a line behind the end of a turn
PUBLISHED = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] | trim) + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OWN_FILE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

ONE = (Turn("user", (0, "\nwhat is it?")), Turn("assistant", ("a cat",)))
MANY = (
    Turn("system", ("be brief",)),
    Turn("user", (0, "\nwhat is it?")),
    Turn("assistant", ("a cat",)),
    Turn("user", ("and ", 1, "?")),
    Turn("assistant", ("a dog, big",)),
)


def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "all special tokens": llama_like(),
        "chat tokens": byte_tokenizer(CHATML, bos_token="<s>", eos_token=CHATML[1]),
        "no BOS, no PAD": byte_tokenizer(eos_token="<|end|>"),
        "no tokens until EOS was added": with_end(),
    }


def with_end() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    assert tokenizer.eos_token_id is None
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    return tokenizer


def source(name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    if name == "file":
        (tmp_path / "own.jinja").write_text(OWN_FILE)
        return template_source(str(tmp_path / "own.jinja"), tokenizer)
    if name == "published":
        tokenizer.chat_template = PUBLISHED
        return template_source("", tokenizer)
    return template_source(name, tokenizer)


def flat(pieces: Sequence[Piece]) -> list[int]:
    """Token ids, images as negative numbers."""
    return [token for piece in pieces for token in (piece.ids if piece.image < 0 else (-1 - piece.image,))]


@pytest.mark.parametrize("kind", tokenizers())
@pytest.mark.parametrize("name", [*BUILT_IN, "file", "published"])
@pytest.mark.parametrize("turns", [ONE, MANY], ids=["one", "many"])
def test_prompts_are_prefixes_and_labels_are_answers(
    name: str, kind: str, turns: tuple[Turn, ...], tmp_path: Path
) -> None:
    tokenizer = tokenizers()[kind]
    template = Template(tokenizer, source(name, tmp_path, tokenizer))
    training = template.encode(turns)
    prompt = flat(template.encode(turns, prompt_only=True))
    assert flat(training)[: len(prompt)] == prompt and len(prompt) < len(flat(training))
    answers = [turn.content[0] for turn in turns if turn.role == "assistant"]
    labelled = [piece for piece in training if piece.labelled]
    assert [tokenizer.decode(piece.ids[:-1]) for piece in labelled] == answers
    assert all(piece.ids[-1] == tokenizer.eos_token_id for piece in labelled)
    assert flat(training)[len(prompt) :] == list(labelled[-1].ids)  # nothing behind the last answer
    assert [piece.image for piece in training if piece.image >= 0] == list(range(2 if turns is MANY else 1))
    for index, turn in enumerate(turns):  # every earlier answer was asked for with what training has in front of it
        if turn.role == "assistant":
            asked = flat(template.encode(turns[: index + 1], prompt_only=True))
            assert flat(training)[: len(asked)] == asked


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_built_in_templates_write(name: str) -> None:
    expected = {
        "plain": "<s>be brief\nX\nwhat is it?\na cat</s>and Y?\na dog, big</s>",
        "vicuna": "<s>be brief USER: X\nwhat is it? ASSISTANT: a cat</s>USER: and Y? ASSISTANT: a dog, big</s>",
        "llama_2": "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nX\nwhat is it? [/INST] a cat</s>"
        "<s>[INST] and Y? [/INST] a dog, big</s>",
        "chatml": "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nX\nwhat is it?<|im_end|>\n"
        "<|im_start|>assistant\na cat</s><|im_end|>\n<|im_start|>user\nand Y?<|im_end|>\n"
        "<|im_start|>assistant\na dog, big</s>",
    }[name]
    tokenizer = llama_like()
    pieces = Template(tokenizer, template_source(name, tokenizer)).encode(MANY)
    assert "".join("XY"[p.image] if p.image >= 0 else tokenizer.decode(p.ids) for p in pieces) == expected


def test_special_tokens_in_what_is_said_are_text() -> None:
    tokenizer = llama_like()
    special = set(tokenizer.all_special_ids)
    template = Template(tokenizer, template_source("plain", tokenizer))
    turns = (Turn("user", ("is </s> or <image> a tag? <s>",)), Turn("assistant", ("</s> is, <image> too",)))
    bos, _, (answer) = template.encode(turns)[0].ids, None, template.encode(turns)[-1]
    assert special.isdisjoint(bos[1:]) and special.isdisjoint(answer.ids[:-1])
    assert tokenizer.decode(answer.ids[:-1]) == "</s> is, <image> too"
    assert tokenizer.decode(bos[1:]) == "is </s> or <image> a tag? <s>\n"
    raw = template.encode((Turn("text", ("one</s>two",)),))
    assert special.isdisjoint(flat(raw)) and tokenizer.decode(flat(raw)) == "one</s>two"


def test_raw_text_is_all_target() -> None:
    tokenizer = llama_like()
    template = Template(tokenizer, template_source("plain", tokenizer))
    assert template.encode((Turn("text", ("abc",)),)) == (
        Piece(template.encode((Turn("text", ("abc",)),))[0].ids, labelled=True),
    )
    around = template.encode((Turn("text", ("before ", 0, " behind")),))
    assert [(p.image, p.labelled) for p in around] == [(-1, True), (0, False), (-1, True)]


def test_raw_text_begins_as_its_tokenizer_begins_texts() -> None:
    """With BOS, so that the first token is learned, too; a tokenizer that does not write one is not made to."""
    tokenizer = llama_like()
    plain = Template(tokenizer, "").encode((Turn("text", ("abc",)),))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    begun = Template(tokenizer, "").encode((Turn("text", ("abc",)),))
    assert begun == (Piece((tokenizer.bos_token_id,)), *plain)


def test_other_end_tokens_end_answers() -> None:
    """An LLM may be published with more end tokens than its tokenizer's EOS."""
    tokenizer = byte_tokenizer(CHATML, eos_token="</s>")
    end = int(tokenizer.convert_tokens_to_ids(CHATML[1]))  # type: ignore[arg-type]
    labelled = [p for p in Template(tokenizer, PUBLISHED, [end]).encode(MANY) if p.labelled]
    assert [p.ids[-1] for p in labelled] == [end, end]


REWRITES = (
    "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}{{ m.content }}"
    "{% else %}gone{% endif %}{% endfor %}"
)
FORGETS = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% else %}?{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("jinja", "said"), [(REWRITES, "rewrites earlier turns"), (FORGETS, "shows 0 of the 2 images")]
)
def test_templates_that_cannot_be_trained_with_are_refused(jinja: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Template(llama_like(), jinja).encode(MANY)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (MANY[:2], "ends without an answer"),
        ((ONE[0], Turn("assistant", (" ",))), "the answer is empty"),
        ((Turn("user", ("draw it",)), Turn("assistant", (0, "here"))), "an image stands in an answer"),
        ((Turn("user", ("\ue0f1",)), ONE[1]), "private-use"),
        ((Turn("text", ("a",)), ONE[1]), "raw text is one turn"),
    ],
)
def test_conversations_that_cannot_be_learned_are_refused(turns: tuple[Turn, ...], said: str) -> None:
    tokenizer = llama_like()
    with pytest.raises(DataError, match=said):
        Template(tokenizer, template_source("plain", tokenizer)).encode(turns)


def test_a_template_may_refuse_a_conversation() -> None:
    jinja = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + OWN_FILE
    template = Template(llama_like(), jinja)
    assert template.encode(ONE)
    with pytest.raises(DataError, match="no system turns"):
        template.encode(MANY)


def test_mistakes_with_templates_are_told_at_once(tmp_path: Path) -> None:
    tokenizer = llama_like()
    with pytest.raises(ConfigError, match="no chat template: choose one with --template plain"):
        template_source("", tokenizer)
    with pytest.raises(ConfigError, match=r"--template vicunna: .*did you mean vicuna\?"):
        template_source("vicunna", tokenizer)
    (tmp_path / "a.jinja").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        template_source(str(tmp_path / "a.jinja"), tokenizer)
    with pytest.raises(ConfigError, match="not valid Jinja, line 2"):
        Template(tokenizer, "{{ bos_token }}\n{% for m in %}")
    with pytest.raises(ConfigError, match="no EOS"):
        Template(byte_tokenizer(), "x")


def test_a_template_goes_to_a_worker() -> None:
    template = Template(llama_like(), OWN_FILE, [7])
    again = pickle.loads(pickle.dumps(template))
    assert again.encode(MANY) == template.encode(MANY) and again.stop_ids == template.stop_ids


def test_a_template_gives_others_by_name_with_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = llama_like()
    own = Template(tokenizer, template_source("vicuna", tokenizer), stop_ids=[7])
    assert own.named("") is own
    assert own.named("plain") is own.named("plain")
    assert (own.named("plain").jinja, own.named("plain").stop_ids) == (
        template_source("plain", tokenizer),
        own.stop_ids,
    )
    again = pickle.loads(pickle.dumps(own))
    assert again.named("plain").encode(ONE) == own.named("plain").encode(ONE) != own.encode(ONE)
    with pytest.raises(ConfigError, match=r"template plian: neither one of .* did you mean plain"):
        own.named("plian")
    (tmp_path / "bad.jinja").write_text("{% for %}")
    with pytest.raises(ConfigError, match=r"template .*bad\.jinja: the chat template is not valid Jinja, line 1"):
        own.named(str(tmp_path / "bad.jinja"))
