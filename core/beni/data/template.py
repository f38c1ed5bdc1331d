"""Conversations to tokens: one Jinja template serves training, evaluation and generation.

A rendered conversation is cut into pieces (text, image, answer) and every piece is tokenized by itself. So the prompt
of a generation has exactly the tokens it had in training, and labels are known while tokenizing, never recovered later.
What people say is text and nothing else: a `</s>` or `<image>` that stands in it is spelled out, never taken
for the token.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from beni.errors import ConfigError, DataError
from beni.sample import Turn

BUILT_IN = ("plain", "vicuna", "llama_2", "chatml")
_IMAGE = "\ue0f1"
"""A private-use character that stands for an image while Jinja renders; never reaches the tokenizer."""
_CUT = "\ue0f2"
"""Another one: the text is tokenized in two parts here, so that no special token is found across it."""
_CACHED_CHARACTERS = 512
"""Conversations up to this length are remembered: short ones come again (one question about many images)."""


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

    Raises:
        ConfigError: the tokenizer has no EOS, or the template is not valid Jinja.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, jinja: str, stop_ids: Iterable[int] = ()) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no EOS token: an answer could never end")
        self.tokenizer = tokenizer
        self.jinja = jinja
        self.stop_ids = frozenset({int(tokenizer.eos_token_id), *stop_ids})
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special} | set(
            tokenizer.all_special_tokens
        )
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self._short = lru_cache(maxsize=1 << 14)(self._encode)
        self.named = lru_cache(maxsize=None)(self._named)
        try:
            self._render([Turn("user", ("a",)), Turn("assistant", ("b",))], prompt=False)
        except DataError as error:
            if isinstance(error.__cause__, jinja2.TemplateSyntaxError):
                wrong = error.__cause__
                raise ConfigError(
                    f"the chat template is not valid Jinja, line {wrong.lineno}: {wrong.message}"
                ) from error

    def __reduce__(self) -> tuple[Any, ...]:  # the caches stay behind when a worker process is started
        return Template, (self.tokenizer, self.jinja, tuple(self.stop_ids))

    def _named(self, name: str) -> "Template":
        """Another template with the same tokenizer and ends of answers; read once, and `named` remembers it.

        Args:
            name: a built-in name or a file; empty: this one.

        Raises:
            ConfigError: neither, or not valid Jinja.
        """
        if not name:
            return self
        try:
            return Template(self.tokenizer, read_template(name), self.stop_ids)
        except ConfigError as error:
            raise ConfigError(f"template {name}: {error}") from error

    def encode(self, turns: tuple[Turn, ...], prompt_only: bool = False) -> tuple[Piece, ...]:
        """Token pieces of a conversation.

        Args:
            turns: the conversation; the last turn is an answer. Or one turn `text`, all of which is a target.
            prompt_only: leave the last answer out and end where the model has to go on.

        Raises:
            DataError: the conversation does not alternate as the template wants, or ends without an answer.
            ConfigError: the template cannot be trained with.
        """
        length = sum(len(part) for turn in turns for part in turn.content if isinstance(part, str))
        return (self._short if length <= _CACHED_CHARACTERS else self._encode)(turns, prompt_only)

    def _encode(self, turns: tuple[Turn, ...], prompt_only: bool) -> tuple[Piece, ...]:
        if turns[0].role == "text":
            return self._text(turns, labelled=not prompt_only)
        if turns[-1].role != "assistant":
            raise DataError("the conversation ends without an answer")
        if not prompt_only and not "".join(map(str, turns[-1].content)).strip():
            raise DataError("there is nothing to learn: the answer is empty")
        answers = [turn for turn in turns if turn.role == "assistant"]
        pieces: list[Piece] = []
        image = 0
        for number, (prompt, answer) in enumerate(self._render_spans(turns)):
            for position, chunk in enumerate(prompt.split(_IMAGE)):
                if position:
                    pieces.append(Piece(image=image))
                    image += 1
                if chunk:
                    pieces.append(Piece(self._tokenize(chunk)))
            last = number == len(answers) - 1
            if not (last and prompt_only):
                pieces += self._answer(answer, self._content(answers[number]).strip(), last)
        placed = sum(isinstance(part, int) for turn in turns for part in turn.content)
        if image != placed:
            raise ConfigError(
                f"this chat template shows {image} of the {placed} images of a conversation: choose another"
            )
        return tuple(pieces)

    def continued(self, turns: tuple[Turn, ...]) -> tuple[Piece, ...]:
        """Token pieces of a conversation whose last answer has begun and is to go on, without what would end it.

        Raises:
            DataError, ConfigError: as `encode`.
        """
        prompt = self.encode(turns, prompt_only=True)
        text, said = self._render_spans(turns)[-1][1], self._content(turns[-1]).strip()
        if said not in text:
            raise DataError("the template writes answers in other words, so none can be gone on with")
        return (*prompt, Piece(self._tokenize(text[: text.find(said) + len(said)])))

    def _text(self, turns: Sequence[Turn], labelled: bool) -> tuple[Piece, ...]:
        if len(turns) > 1:
            raise DataError("raw text is one turn, this has more behind it")
        first = self.tokenizer("")["input_ids"][:1]  # BOS, if texts begin so: their first token is learned, too
        begin = [Piece(tuple(first))] if first == [self.tokenizer.bos_token_id] else []
        return *begin, *(
            Piece(image=part) if isinstance(part, int) else Piece(self._tokenize(self._plain(part)), labelled=labelled)
            for part in turns[0].content
        )

    def _render_spans(self, turns: Sequence[Turn]) -> list[tuple[str, str]]:
        """The rendered conversation as (prompt, answer) stretches."""
        spans: list[tuple[str, str]] = []
        done = ""
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:index], prompt=True)
            after = self._render(turns[: index + 1], prompt=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise ConfigError(
                    "this chat template rewrites earlier turns when later ones follow: training and generation would "
                    "see different texts; choose another with --template"
                )
            spans.append((before[len(done) :], after[len(before) :]))
            done = after
        return spans

    def _render(self, turns: Sequence[Turn], prompt: bool) -> str:
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, chat_template=self.jinja, tokenize=False, add_generation_prompt=prompt
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses this conversation: {error}") from error
        assert isinstance(rendered, str)
        return rendered

    def _content(self, turn: Turn) -> str:
        """What a turn says, as Jinja gets it."""
        if turn.role == "assistant" and any(isinstance(part, int) for part in turn.content):
            raise DataError("an image stands in an answer; it must stand in what the user says")
        return "".join(_IMAGE if isinstance(part, int) else self._plain(part) for part in turn.content)

    def _plain(self, text: str) -> str:
        """A text with a cut in everything that would be taken for a special token."""
        if _IMAGE in text or _CUT in text:
            raise DataError("the text holds one of the private-use characters U+E0F1 and U+E0F2")
        return self._special.sub(lambda match: match[0][0] + _CUT + match[0][1:], text)

    def _answer(self, text: str, said: str, last: bool) -> list[Piece]:
        """An answer up to and including its end token.

        Where the template ends answers with something that is no end token of this LLM, the LLM's own EOS is put behind
        what was said.
        """
        ids = self._tokenize(text)
        end = next((position + 1 for position, token in enumerate(ids) if token in self.stop_ids), None)
        if end is not None:
            labelled, rest = ids[:end], ids[end:]
        else:
            behind = text.find(said) + len(said) if said in text else len(text)
            labelled = (*self._tokenize(text[:behind]), int(self.tokenizer.eos_token_id))
            rest = self._tokenize(text[behind:])
        return [Piece(labelled, labelled=True), *([] if last or not rest else [Piece(rest)])]

    def _tokenize(self, text: str) -> tuple[int, ...]:
        parts = text.split(_CUT) if _CUT in text else (text,)
        return tuple(token for part in parts for token in self.tokenizer(part, add_special_tokens=False)["input_ids"])


def template_source(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja source of a built-in name, a file, or (empty name) the tokenizer's own template.

    Raises:
        ConfigError: neither a built-in template nor a file, or the tokenizer has none of its own.
    """
    if not name:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"this LLM's tokenizer has no chat template: choose one with --template {'|'.join(BUILT_IN)}"
            )
        return tokenizer.chat_template
    try:
        return read_template(name)
    except ConfigError as error:
        raise ConfigError(f"--template {name}: {error}") from error


def read_template(name: str) -> str:
    """The Jinja source of a built-in name or a file.

    Raises:
        ConfigError: neither, or a file that cannot be read; the caller says whose template this is.
    """
    if name in BUILT_IN:
        return files("beni.data").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")
    path = Path(name)
    if not path.is_file():
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"neither one of {', '.join(BUILT_IN)} nor a Jinja file{hint}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}") from error
