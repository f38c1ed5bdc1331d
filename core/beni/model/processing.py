"""Text and images to model inputs, for a saved model: what `AutoProcessor` loads."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from beni.data.batch import Pictures
from beni.data.document import Composer
from beni.data.padded import pad
from beni.data.template import Piece
from beni.errors import DataError
from beni.model.build import composer_of
from beni.model.config import BeniConfig
from beni.sample import IMAGE_MARK, ImageRef, Sample, Turn, image_ref, split_marks
from beni.types import Size

Picture = Image.Image | str | Path


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
        self.composer = composer
        self.chat_template = composer.template.jinja
        self.image_token = IMAGE_MARK

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "BeniProcessor":
        """Load from a saved model: its tokenizer, and its config for everything else."""
        config = BeniConfig.from_pretrained(pretrained_model_name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path)
        return cls(tokenizer, composer_of(config, tokenizer))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the tokenizer; everything else is in the model's config."""
        return list(self.tokenizer.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs))

    def __call__(
        self,
        images: Picture | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs of `generate`, rows padded on the left.

        Args:
            images: one image, a flat list in the order of the marks, or a list per text.
            text: one or several texts in which `<image>` stands for an image.

        Raises:
            DataError: marks and images differ in number.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        flat = [_ref(image) for image in _flatten(images)]
        documents = []
        used = 0
        for number, content in enumerate(texts):
            parts = split_marks(content)
            marks = sum(isinstance(part, int) for part in parts)
            refs = tuple(flat[used : used + marks])
            used += marks
            if len(refs) != marks:
                raise DataError(
                    f"text {number} has {marks} {IMAGE_MARK} marks, but only {len(refs)} images are left for it"
                )
            pieces = [
                Piece(image=part) if isinstance(part, int) else Piece(tuple(self._tokenize(part))) for part in parts
            ]
            sample = Sample(str(number), (Turn("user", parts),), refs)
            documents.append(self.composer.assemble(sample, pieces))
        if used != len(flat):
            raise DataError(f"the texts have {used} {IMAGE_MARK} marks, but there are {len(flat)} images")
        pad_id = self.tokenizer.pad_token_id
        return BatchFeature(pad(documents, Pictures(self.composer), pad_id if pad_id is not None else 0))

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Render chats whose content is text or a list of {type: text | image}; with `tokenize=True` also process them.

        Images are taken from the entries of type image (`image`, `path` or `url`).
        """
        several = isinstance(conversation[0], (list, tuple))
        chats = conversation if several else [conversation]
        images = [[i for message in chat for i in _images_of(message)] for chat in chats]
        prompt = bool(kwargs.get("add_generation_prompt"))
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": m["role"], "content": _text_of(m)} for m in chat],
                chat_template=kwargs.get("chat_template") or self.chat_template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
            for chat in chats
        ]
        if not kwargs.get("tokenize"):
            return texts if several else texts[0]
        return self(images=images, text=texts)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes", "image_index", "image_at"]

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _flatten(images: Any) -> list[Picture]:
    if images is None:
        return []
    if isinstance(images, (Image.Image, str, Path)):
        return [images]
    return [picture for image in images for picture in _flatten(image)]


def _ref(image: Picture) -> ImageRef:
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "tiff")  # uncompressed, any mode
        return ImageRef(data=file.getvalue(), size=Size(*image.size))
    return image_ref(str(image))


def _text_of(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(IMAGE_MARK if part["type"] == "image" else str(part.get("text", "")) for part in content)


def _images_of(message: Mapping[str, Any]) -> list[Picture]:
    content = message["content"]
    if isinstance(content, str):
        return []
    found = [p.get("image") or p.get("path") or p.get("url") for p in content if p["type"] == "image"]
    return [image for image in found if image is not None]


AutoProcessor.register(BeniConfig, BeniProcessor)
