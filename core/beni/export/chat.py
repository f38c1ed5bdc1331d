"""Templates and tokenizers that make of a chat, its pictures inside of messages, the tokens of training."""

import copy
from collections.abc import Sequence

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from beni.sample import IMAGE_MARK

_FLATTEN = """\
{%- set flat = namespace(messages=[], text='') -%}
{%- for message in messages -%}
{%- if message.content is string -%}{%- set flat.text = message.content -%}
{%- else -%}
{%- set flat.text = '' -%}
{%- for part in message.content -%}
{%- set flat.text = flat.text ~ ('IMAGE' if part.type == 'image' else part.text) -%}
{%- endfor -%}
{%- endif -%}
{%- set flat.messages = flat.messages + [{'role': message.role, 'content': flat.text}] -%}
{%- endfor -%}
{%- set messages = flat.messages %}
""".replace("IMAGE", IMAGE_MARK)
"""Takes nothing from the template behind it, which may begin with a blank line."""


def with_images(jinja: str) -> str:
    """A template of plain texts that also takes lists of {type: text | image}; images become `<image>`.

    Args:
        jinja: the template, for messages whose content is a string.
    """
    return _FLATTEN + jinja


def as_written(tokenizer: PreTrainedTokenizerBase, pad_id: int, tokens: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """A tokenizer that knows `<image>`, pads on the left, and adds nothing to a text.

    Templates write all special tokens, as in training.

    Args:
        tokenizer: the model's; stays as it is.
        pad_id: the token that fills batches, if the tokenizer has none.
        tokens: that it has to know besides.
    """
    ours = copy.deepcopy(tokenizer)
    ours.add_special_tokens({"extra_special_tokens": [IMAGE_MARK, *tokens]}, replace_extra_special_tokens=False)
    if hasattr(ours, "image_token"):  # of a tokenizer made for a model with images: processors believe it
        ours.image_token = IMAGE_MARK
    if ours.pad_token_id is None:
        ours.pad_token = ours.convert_ids_to_tokens(pad_id)
    ours.padding_side = ours.init_kwargs["padding_side"] = "left"  # only what was given at the start is saved
    for option in ("add_bos_token", "add_eos_token"):
        if getattr(ours, option, False):
            setattr(ours, option, False)
    if ours.is_fast:
        ours.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    return ours
