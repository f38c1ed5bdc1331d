"""A saved model that answers word by word."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.generation.stopping_criteria import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from beni.chat.conversation import Conversation
from beni.data.document import Composer, Document
from beni.data.images import load_image
from beni.errors import ConfigError, DataError
from beni.eval.generate import Sampling, answer_ids
from beni.eval.saved import load_saved
from beni.model.config import BeniConfig
from beni.model.modeling import BeniForConditionalGeneration

HALF = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, whole or as far as it has come."""

    text: str
    ids: tuple[int, ...]
    """Its tokens, with the one that ended it."""


@dataclass(frozen=True)
class Talker:
    """A model and what feeds it, under a name."""

    name: str
    model: BeniForConditionalGeneration
    composer: Composer

    @property
    def parts(self) -> str:
        """What it is made of, in one line."""
        return parts_of(self.model.config)

    def prompt(self, conversation: Conversation) -> Document:
        """The tokens of a conversation up to where the model goes on.

        Raises:
            DataError: what was said cannot be rendered.
            ImageError: the size of a picture cannot be read.
        """
        return self.composer.compose(conversation.sample(), prompt_only=True)

    def check(self, conversation: Conversation, sampling: Sampling) -> Document:
        """The prompt, if it can be answered.

        Raises:
            DataError, ImageError: as `answer` does.
        """
        document = self.prompt(conversation)
        for image in document.images:
            load_image(image.ref)
        most = getattr(self.model.llm.config.get_text_config(), "max_position_embeddings", None)
        if most and len(document) + sampling.max_new_tokens > most:
            raise DataError(
                f"{self.name}: the conversation is {len(document):,} tokens long and its answer may have "
                f"{sampling.max_new_tokens:,}, but the language model was made for {most:,}: start a new one, or allow "
                f"a shorter answer"
            )
        return document

    def answer(self, conversation: Conversation, sampling: Sampling) -> Iterator[Said]:
        """The answer as it grows, and in the end as a whole; leaving early ends the generation.

        Raises:
            DataError: the conversation is too long for the language model.
            ImageError: a picture cannot be read.
        """
        document = self.check(conversation, sampling)
        tokens = _Tokens()
        left = _Left()

        with ThreadPoolExecutor(1, "generate") as pool:
            call = pool.submit(
                answer_ids, self.model, self.composer, [document], sampling, streamer=tokens, stopping=[left]
            )
            call.add_done_callback(lambda _: tokens.queue.put(None))
            ids: list[int] = []
            try:
                while (token := tokens.queue.get()) is not None:
                    ids.append(token)
                    yield self._said(ids, whole=False)
            finally:
                left.flag.set()
            call.result()
        yield self._said(ids, whole=True)

    def _said(self, ids: list[int], whole: bool) -> Said:
        text = self.composer.template.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return Said(text.strip() if whole else text.strip().rstrip(HALF), tuple(ids))


def open_talkers(folders: list[str], device: torch.device) -> list[Talker]:
    """Load one saved model, or two to be compared.

    Raises:
        ConfigError: not one or two, not saved models, or the same one twice.
    """
    if not 1 <= len(folders) <= 2:
        raise ConfigError(f"one model, or two side by side; these are {len(folders)}")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"MODEL and MODEL2 are both {folders[0]}: name another one, or only one")
    names = names_of(folders)
    return [
        Talker(name, *load_saved(folder, device, option))
        for name, folder, option in zip(names, folders, ("MODEL", "MODEL2"), strict=False)
    ]


def names_of(folders: list[str]) -> list[str]:
    """Short names of models: of their runs, where these differ, else the folders."""
    paths = [Path(folder).resolve() for folder in folders]
    short = [path.parent.name if path.name == "model" else path.name for path in paths]
    return short if len(set(short)) == len(short) else list(folders)


def parts_of(config: BeniConfig) -> str:
    """The parts of a model, as one would choose them."""
    encoders = " + ".join(part.plugin.name for part in config.encoder_parts().values())
    singles = [config.part(kind).plugin.name for kind in ("view", "connector", "fusion")]
    return " · ".join([encoders, *singles, str(config.get_text_config().model_type)])


class _Tokens(BaseStreamer):
    """Hands tokens to another thread; the prompt, which comes first, is left out."""

    def __init__(self) -> None:
        self.queue: queue.Queue[int | None] = queue.Queue()
        self.started = False

    def put(self, value: torch.Tensor) -> None:
        if self.started:
            self.queue.put(int(value))
        self.started = True

    def end(self) -> None:
        """Told by whoever called `generate`, who also knows of errors."""


class _Left(StoppingCriteria):
    """Ends a generation that nobody reads any more."""

    def __init__(self) -> None:
        self.flag = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.flag.is_set(), device=input_ids.device)
