"""A saved model in lmms-eval: `lmms-eval --model beni --model_args pretrained=RUN/model --tasks …`.

The only module that needs that package (the extra `lmms-eval`); it finds `MANIFEST` by the entry point that beni has in
its group `lmms_eval.models`. Answers are those of `beni evaluate`: the same tokens, the same greedy words.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from beni.config import RunOptions
from beni.errors import ConfigError, DataError
from beni.eval.judge import judge
from beni.eval.saved import load_saved
from beni.model.chats import picture_ref
from beni.processes import processes
from beni.sample import ImageRef, Role, Sample, Turn

MANIFEST = ModelManifest(model_id="beni", chat_class_path="beni.eval.lmms.BeniChat")

GREEDY: dict[str, Any] = {"temperature": 0, "do_sample": False, "num_beams": 1, "top_p": 1, "top_k": 50}
"""What a task may ask for beside its longest answer and where answers stop: words are chosen greedily."""
LONGEST = 128
"""Tokens of an answer where the task does not say."""


class BeniChat(lmms):
    """Reads the chat messages of a task.

    Args:
        pretrained: folder of a saved model (RUN/model).
        batch_size: questions answered at a time; lmms-eval's `auto` means 64.
        device: cpu or cuda; by default a GPU if there is one.
    """

    is_simple = False

    def __init__(self, pretrained: str, batch_size: int | str = 64, device: str | None = None, **unknown: Any) -> None:
        super().__init__()
        given = sorted(name for name, value in unknown.items() if value is not None and name != "max_batch_size")
        if given:
            raise ConfigError(f"--model_args: beni takes pretrained, batch_size and device, not {', '.join(given)}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("beni's models answer lmms-eval in one process: start it without a launcher")
        if device not in (None, "cpu", "cuda"):
            raise ConfigError(f"--model_args device={device}: cpu or cuda; CUDA_VISIBLE_DEVICES chooses among GPUs")
        self.options = RunOptions(device=device or "auto")  # type: ignore[arg-type]
        self.size = 64 if batch_size == "auto" else int(batch_size)
        with processes(self.options) as procs:
            self.model, self.composer = load_saved(pretrained, procs.device, "--model_args pretrained")

    @property
    def batch_size(self) -> int:
        """Questions answered at a time."""
        return self.size

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Greedy answers, in the order of the requests.

        Raises:
            DataError: a message of something else than texts and images, or a task that asks for other words than the
                likeliest.
        """
        answers = [""] * len(requests)
        groups: dict[int, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[_longest(request.args[2])].append(number)
        for most, numbers in groups.items():
            samples = [self._sample(requests[number]) for number in numbers]
            with processes(self.options) as procs:
                found = judge(self.model, self.composer, samples, procs, self.size, most, label="answering")
            for number, prediction in zip(numbers, found, strict=True):
                if prediction.error:
                    raise DataError(f"document '{prediction.id}': {prediction.error}")
                answers[number] = _cut(prediction.prediction, requests[number].args[2].get("until"))
        return answers

    def _sample(self, request: Instance) -> Sample:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return conversation(doc_to_messages(self.task_dict[task][split][doc_id]), f"{task}/{doc_id}")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not asked by chat tasks.

        Raises:
            NotImplementedError: always; `metric=choice` of `beni evaluate` judges by likelihood.
        """
        raise NotImplementedError("tasks that compare likelihoods: beni evaluate --data '…?metric=choice' does that")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not answered.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("tasks of several rounds")


def conversation(messages: Sequence[Mapping[str, Any]], name: str) -> Sample:
    """Chat messages as a sample whose answer is open.

    Images in front of a text stand on a line of their own, as in the data that models are trained on.

    Raises:
        DataError: something else than texts and images.
    """
    images: list[ImageRef] = []
    turns: list[Turn] = []
    for message in messages:
        content: list[str | int] = []
        for part in message["content"]:
            if part["type"] == "image":
                content.append(len(images))
                images.append(picture_ref(part["url"]))
            elif part["type"] == "text":
                if content and isinstance(content[-1], int) and not part["text"][:1].isspace():
                    content.append("\n")
                content.append(part["text"])
            else:
                raise DataError(f"document '{name}' holds {part['type']}: beni's models read texts and images")
        role: Role = message["role"]
        turns.append(Turn(role, tuple(content)))
    return Sample(name, (*turns, Turn("assistant", ("",))), tuple(images))


def _longest(asked: Mapping[str, Any]) -> int:
    """Tokens of an answer.

    Raises:
        DataError: the task asks for more than greedy words.
    """
    known = {*GREEDY, "max_new_tokens", "until"}
    more = {
        n: value for n, value in asked.items() if n not in known or (n in GREEDY and value not in (None, GREEDY[n]))
    }
    if more:
        raise DataError(
            f"the task asks for {more}, and beni's models answer lmms-eval greedily: --gen_kwargs temperature=0"
        )
    return int(asked.get("max_new_tokens") or LONGEST)


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """An answer up to where the task says that it ends."""
    for stop in [until] if isinstance(until, str) else until or ():
        text = text.partition(stop)[0] if stop else text
    return text.strip()
