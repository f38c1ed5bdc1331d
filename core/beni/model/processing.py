"""Text and images to model inputs, for a saved model: what `AutoProcessor` loads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from beni.data.batch import Pictures
from beni.data.document import Composer, Document
from beni.data.padded import pad
from beni.data.template import Piece, Template
from beni.errors import DataError, counted
from beni.model.build import composer_of
from beni.model.chats import Message, conversation, flat, picture_ref, spelled
from beni.model.config import BeniConfig
from beni.sample import IMAGE_MARK, Sample, Turn, split_marks

LOADING = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that say where files are."""
OPTIONS: dict[str, tuple[Any, ...]] = {
    "return_tensors": ("pt",),
    "padding": (True, False, "longest"),
    "padding_side": ("left",),
    "add_special_tokens": (False,),
    "truncation": (False,),
}
"""Options of processors elsewhere, and the values of each that say what is done here anyway. None does, too."""


class BeniProcessor(ProcessorMixin):
    """Renders chats, tokenizes as in training, cuts images as the model's view does.

    Args:
        tokenizer: the language model's, with the chat template.
        composer: what the model's parts say about counts.
    """

    attributes = ("tokenizer",)
    tokenizer_class = "AutoTokenizer"
    valid_kwargs = ("chat_template",)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, composer: Composer) -> None:
        self.tokenizer = tokenizer
        self.tokenizer.padding_side = "left"  # where generation needs it, also if somebody else pads
        self.composer = composer
        self.chat_template = composer.template.jinja
        self.image_token = IMAGE_MARK

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "BeniProcessor":
        """Load from a saved model: its tokenizer, and its config for everything else.

        Args:
            pretrained_model_name_or_path: the folder, or its id on the Hugging Face hub.
            kwargs: `revision`, `token`, … as everywhere.
        """
        where = {name: kwargs[name] for name in LOADING if name in kwargs}
        config = BeniConfig.from_pretrained(pretrained_model_name_or_path, **where)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **where)
        return cls(tokenizer, composer_of(config, tokenizer))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the tokenizer; everything else is in the config of the model, which is saved to the same folder."""
        return list(self.tokenizer.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs))

    @property
    def image_processor(self) -> "BeniProcessor":
        """Itself: pipelines ask whoever prepares images how these are padded in a batch, and they are not."""
        return self

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Inputs of `generate`, rows padded on the left.

        Args:
            images: one image (a `beni.model.chats.Picture`), a flat list in the order of the marks, or a list per text.
            text: one or several texts in which `<image>` stands for an image.
            kwargs: of `OPTIONS`.

        Raises:
            DataError: marks and images differ in number, there is nothing to read, or an option that would make other
                inputs.
        """
        _check_options(kwargs)
        texts = [text] if isinstance(text, str) else list(text or ())
        if not texts:
            raise DataError("the processor was given no text: with images alone, write <image> for each")
        given = [picture_ref(image) for image in flat(images)]
        documents = []
        used = 0
        for number, content in enumerate(texts):
            parts = split_marks(content)
            marks = sum(isinstance(part, int) for part in parts)
            refs = tuple(given[used : used + marks])
            used += marks
            if len(refs) != marks:
                raise DataError(
                    f"text {number} has {counted(marks, f'{IMAGE_MARK} mark')}, but only "
                    f"{counted(len(refs), 'image')} left for it"
                )
            pieces = [
                Piece(image=part) if isinstance(part, int) else Piece(tuple(self._tokenize(part))) for part in parts
            ]
            sample = Sample(str(number), (Turn("user", parts),), refs)
            documents.append(self.composer.assemble(sample, pieces))
        if used != len(given):
            raise DataError(
                f"the texts have {counted(used, f'{IMAGE_MARK} mark')}, but there came {counted(len(given), 'image')}"
            )
        return self._inputs(documents)

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render chats whose content is text or a list of entries; with `tokenize` make inputs of `generate`.

        Tokens are those of training, also behind an answer. Images stand in entries of the type image (`image`, `path`,
        `url` or `base64`) or image_url; an `<image>` in what people say is text.

        Args:
            conversation: a chat, or several.
            chat_template: another template than the model's.
            add_generation_prompt: end where the model has to answer.
            continue_final_message: end inside the last answer, which the model has to go on with.
            tokenize: return tokens and images instead of text.
            return_dict: return all inputs, not `input_ids` alone.
            processor_kwargs, kwargs: of `OPTIONS`.

        Raises:
            DataError: a chat that the template cannot render, content that is neither text nor image, or an option that
                would make other inputs.
        """
        _check_options({**(processor_kwargs or {}), **kwargs})
        if add_generation_prompt and continue_final_message:
            raise DataError("add_generation_prompt begins an answer, continue_final_message goes on with one: choose")
        several = bool(conversation) and isinstance(conversation[0], (list, tuple))
        chats: Sequence[Any] = conversation if several else [conversation]
        jinja = chat_template or self.chat_template
        if not tokenize:
            texts = [
                self.tokenizer.apply_chat_template(
                    spelled(chat),
                    chat_template=jinja,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                )
                for chat in chats
            ]
            return texts if several else texts[0]
        own = self.composer.template
        template = Template(self.tokenizer, jinja, own.stop_ids) if chat_template else own
        inputs = self._inputs(
            [self._chat(template, chat, add_generation_prompt, continue_final_message) for chat in chats]
        )
        return inputs if return_dict else inputs["input_ids"]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes", "image_ids", "image_starts"]

    def _chat(self, template: Template, chat: Sequence[Message], ask: bool, go_on: bool) -> Document:
        turns, images = conversation(chat)
        if go_on:
            pieces = template.continued(turns)
        elif ask:
            pieces = template.encode((*turns, Turn("assistant", ("",))), prompt_only=True)
        elif turns and turns[-1].role != "assistant":
            raise DataError("the chat ends without an answer: with add_generation_prompt=True the model gives one")
        else:
            pieces = template.encode(turns)
        return self.composer.assemble(Sample("chat", turns, images), pieces)

    def _inputs(self, documents: Sequence[Document]) -> BatchFeature:
        pad_id = self.tokenizer.pad_token_id
        return BatchFeature(pad(documents, Pictures(self.composer), pad_id if pad_id is not None else 0))

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _check_options(given: dict[str, Any]) -> None:
    """Refuse what would be ignored.

    Raises:
        DataError: names the option.
    """
    for name, value in given.items():
        if value is not None and value not in OPTIONS.get(name, ()):
            raise DataError(
                f"the processor cannot do {name}={value!r}: rows are whole, padded on the left to the longest, and "
                f"torch tensors; it takes images and text"
            )


AutoProcessor.register(BeniConfig, BeniProcessor)
