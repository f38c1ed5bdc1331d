"""Conversations to tokens: one Jinja template serves training, evaluation and generation.

A rendered conversation is cut into pieces (text, image, answer) and every piece is tokenized by itself. So the prompt
of a generation has exactly the tokens it had in training, and labels are known while tokenizing, never recovered later.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from beni.sample import Turn
from beni.errors import ConfigError, DataError

BUILT_IN = ("plain", "vicuna", "llama_2", "chatml")
_IMAGE = "\ue0f1"
"""A private-use character that stands for an image while Jinja renders; never reaches the tokenizer."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a document: token ids of text, or one image (its index); answers are labelled."""

    ids: tuple[int, ...] = ()
    image: int = -1
    labelled: bool = False


class Template:
    """A chat template bound to a tokenizer.

    Args:
        tokenizer: any Hugging Face tokenizer; BOS and PAD may be missing, EOS may not.
        jinja: the template's source, with Hugging Face's variables (messages, add_generation_prompt, bos_token …).
        stop_ids: tokens that end an answer; the tokenizer's EOS is one of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, jinja: str, stop_ids: Iterable[int] = ()) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no EOS token: an answer could never end")
        self.tokenizer = tokenizer
        self.jinja = jinja
        self.stop_ids = frozenset({int(tokenizer.eos_token_id), *stop_ids})
        self.encode = lru_cache(maxsize=1 << 16)(self._encode)

    def __reduce__(self) -> tuple[Any, ...]:  # the cache stays behind when a worker process is started
        return Template, (self.tokenizer, self.jinja, tuple(self.stop_ids))

    def _encode(self, turns: tuple[Turn, ...], prompt_only: bool = False) -> tuple[Piece, ...]:
        """Token pieces of a conversation.

        Args:
            turns: the conversation; the last turn is an answer (or `text`).
            prompt_only: leave the last answer out and end where the model has to go on.

        Raises:
            DataError: the conversation does not alternate as the template wants, or ends without an answer.
        """
        if turns[0].role == "text":
            ids = self._tokenize("".join(part for part in turns[0].content if isinstance(part, str)))
            return (Piece(ids, labelled=True),) if not prompt_only else (Piece(ids),)
        if turns[-1].role != "assistant":
            raise DataError("the conversation ends without an answer")
        spans = self._render_spans(turns)
        if prompt_only:
            spans = spans[:-1]
        pieces: list[Piece] = []
        image = 0
        for index, (text, is_answer) in enumerate(spans):
            if is_answer:
                pieces += self._answer(text, last=index == len(spans) - 1)
                continue
            for position, chunk in enumerate(text.split(_IMAGE)):
                if position:
                    pieces.append(Piece(image=image))
                    image += 1
                if chunk:
                    pieces.append(Piece(self._tokenize(chunk)))
        return tuple(pieces)

    def _render_spans(self, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
        """The rendered conversation as alternating stretches of prompt (False) and answer (True)."""
        spans: list[tuple[str, bool]] = []
        done = ""
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:index], prompt=True)
            after = self._render(turns[: index + 1], prompt=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise ConfigError(
                    "this chat template rewrites earlier turns when later ones follow, so training and generation would "
                    "see different texts: choose another with --template"
                )
            spans += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
        return spans

    def _render(self, turns: Sequence[Turn], prompt: bool) -> str:
        messages = [
            {"role": turn.role, "content": "".join(_IMAGE if isinstance(part, int) else part for part in turn.content)}
            for turn in turns
        ]
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, chat_template=self.jinja, tokenize=False, add_generation_prompt=prompt
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses this conversation: {error}") from error
        assert isinstance(rendered, str)
        return rendered

    def _answer(self, text: str, last: bool) -> list[Piece]:
        """An answer up to and including its end token, which is added if the template writes none."""
        ids = self._tokenize(text)
        end = next((position + 1 for position, token in enumerate(ids) if token in self.stop_ids), None)
        if end is None:
            ids, end = (*ids, int(self.tokenizer.eos_token_id)), len(ids) + 1
        rest = [] if last or end == len(ids) else [Piece(ids[end:])]
        return [Piece(ids[:end], labelled=True), *rest]

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def template_source(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja source of a built-in name, a file, or (empty name) the tokenizer's own template.

    Raises:
        ConfigError: neither a built-in template nor a file, or the tokenizer has none of its own.
    """
    if not name:
        if not tokenizer.chat_template:
            raise ConfigError(f"this LLM's tokenizer has no chat template: choose one with --template {'|'.join(BUILT_IN)}")
        return tokenizer.chat_template
    if name in BUILT_IN:
        return files("beni.data").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"--template {name}: neither one of {', '.join(BUILT_IN)} nor a Jinja file")
    return path.read_text(encoding="utf-8")
