"""Templates and tokenizers that make of a chat, its pictures inside of messages, the tokens of training."""

import copy

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
{%- set messages = flat.messages -%}
""".replace("IMAGE", IMAGE_MARK)


def with_images(jinja: str) -> str:
    """A template of plain texts that also takes lists of {type: text | image}; images become `<image>`.

    Args:
        jinja: the template, for messages whose content is a string.
    """
    return _FLATTEN + jinja


def as_written(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that knows `<image>` and adds nothing to a text: templates write all special tokens, as in training.

    Args:
        tokenizer: the model's; stays as it is.
    """
    ours = copy.deepcopy(tokenizer)
    ours.add_special_tokens({"extra_special_tokens": [IMAGE_MARK]}, replace_extra_special_tokens=False)
    for option in ("add_bos_token", "add_eos_token"):
        if getattr(ours, option, False):
            setattr(ours, option, False)
    if ours.is_fast:
        ours.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    return ours
