"""Tokenizers and a composer without a model."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from beni.data.document import Composer
from beni.data.template import Template, template_source
from beni.interfaces import FusionConfig
from beni.sample import IMAGE_MARK
from beni.types import EncoderSpec, Size
from beni_plugins.connectors.perceiver import PerceiverConfig
from beni_plugins.fusions.xattn import CrossAttentionConfig
from beni_plugins.views.single import Single, SingleConfig

SPEC = EncoderSpec(Size(8, 8), stride=4, width=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CHATML = ("<|im_start|>", "<|im_end|>")


def byte_tokenizer(special: Sequence[str] = (), **roles: str) -> PreTrainedTokenizerFast:
    """One token per byte, and special tokens; `roles` are eos_token and the like."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    if special:
        made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def llama_like() -> PreTrainedTokenizerFast:
    """BOS, EOS, PAD, the image mark, and no chat template."""
    return byte_tokenizer([IMAGE_MARK], bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def composer(
    tokenizer: PreTrainedTokenizerFast | None = None,
    template: str = "plain",
    visual_tokens: int = 3,
    max_tokens: int = 0,
    fusion: FusionConfig | None = None,
    fit: str = "squash",
) -> Composer:
    """Images take `visual_tokens` positions."""
    tokenizer = tokenizer or llama_like()
    return Composer(
        template=Template(tokenizer, template_source(template, tokenizer)),
        view=Single(SingleConfig(fit=fit)),  # type: ignore[arg-type]
        encoders={"main": SPEC},
        connector=PerceiverConfig(num_latents=visual_tokens),
        fusion=fusion or FusionConfig(),
        image_token=int(tokenizer.convert_tokens_to_ids(IMAGE_MARK)),  # type: ignore[arg-type]
        max_tokens=max_tokens,
    )


def deep() -> FusionConfig:
    """A fusion that keeps images out of the text."""
    return CrossAttentionConfig()
