"""Models of published size, every term by hand.

LLaVA-1.5-7B, one sample of 2,048 positions of which 576 are its image: CLIP ViT-L/14 at 336 pixels, 24 layers, 577
tokens; an MLP from 1024 to 4096; LLaMA-7B with 32 layers. And the cross-attention layers of Llama 3.2 Vision 11B.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig

from beni.config import Part, choose
from beni.flops.account import FlopMeter, Reading, RowFlops
from beni.flops.count import Flops, PartFlops, added
from beni.model.config import BeniConfig, spec_to_dict
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.parts import part_of
from beni.types import Size

T = 2048
VISION = 348_496_330_752 + 32_728_252_416 + 693_633_024
"""Linear layers, attention, and the convolution that makes patches."""
PROJECTOR = (4_831_838_208, 19_327_352_832)
LLM, HEAD = 2 * T * 6_476_005_376, 2 * T * 131_072_000
ATTENTION = 2_199_023_255_552


def hollow(encoder: Part, fusion: Part, llm: LlamaConfig) -> BeniForConditionalGeneration:
    """A model without memory for a weight."""
    config = BeniConfig(
        text_config=llm,
        encoders={"main": encoder.to_dict()},
        specs={"main": spec_to_dict(encoder.load().describe(encoder.config))},  # type: ignore[attr-defined]
        connector=choose("connector", "mlp").to_dict(),
        fusion=fusion.to_dict(),
        view=choose("view", "single").to_dict(),
    )
    with torch.device("meta"):
        return BeniForConditionalGeneration(config)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> BeniForConditionalGeneration:
    folder = tmp_path_factory.mktemp("clip")
    clip = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    clip.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    encoder = choose("encoder", f"hf:{folder}", {"weights": "none", "layers": [-1]})
    return hollow(encoder, choose("fusion", "inline"), LlamaConfig())


def one_sample(
    model: BeniForConditionalGeneration, trained: Callable[[str], bool], recomputed: Sequence[nn.Module] = ()
) -> RowFlops:
    """Counts one sample, whose every position predicts the next."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(part_of(name)))
    found = FlopMeter(model, recomputed)
    visual = found.images([found.view.layout(Size(336, 336), found.specs)])
    decoded = found.decoder(Reading(T, T * T, T * T / 2, T, 576))
    return RowFlops(added(visual, decoded.full), added(visual, decoded.causal))


def total(counts: PartFlops) -> Flops:
    return sum(counts.values(), Flops())


def test_forward(llava: BeniForConditionalGeneration) -> None:
    assert LLM + HEAD == 27_062_588_932_096
    forward = VISION + sum(PROJECTOR) + LLM + HEAD + ATTENTION
    assert forward == 29_667_689_594_880
    found = one_sample(llava, lambda part: False)
    assert total(found.full) == Flops(forward)
    assert total(found.causal) == Flops(forward - ATTENTION / 2)


def test_stage_1_trains_the_projector(llava: BeniForConditionalGeneration) -> None:
    """Through the frozen language model a gradient passes: twice its matrices, three times its attention."""
    projector = 2 * PROJECTOR[0] + 3 * PROJECTOR[1]
    wanted = VISION + projector + 2 * (LLM + HEAD) + 3 * ATTENTION
    assert wanted == 61_171_811_581_952
    assert total(one_sample(llava, lambda part: part == "connector").full).model == wanted


def test_stage_2_trains_the_language_model_too(llava: BeniForConditionalGeneration) -> None:
    """With all of the language model recomputed, its head too; layers alone are what beni recomputes."""
    found = total(one_sample(llava, lambda part: part in ("connector", "llm"), recomputed=[llava.llm]).full)
    assert found.model == 88_234_400_514_048
    assert found.hardware == 117_496_012_701_696


def test_cross_attention_reads_512_positions_in_4100_vision_tokens() -> None:
    """8 layers before those of a language model that is otherwise of no interest."""
    sizes = {"variant": "mllama", "heads": 32, "kv_heads": 8, "head_width": 128, "ff_multiple": 3.5}
    llm = LlamaConfig(hidden_size=4096, num_hidden_layers=8, intermediate_size=8, vocab_size=10)
    model = hollow(choose("encoder", "tiny"), choose("fusion", "xattn", sizes), llm)
    text, vision = 512, 4100
    per_text, per_vision, per_pair = 419_430_400, 16_777_216, 16_384
    wanted = 8 * (text * per_text + vision * per_vision + text * vision * per_pair)
    assert wanted == 2_543_425_945_600
    of = Reading(positions=text, memory=vision, reads=text * vision, seen_reads=text * vision)
    assert FlopMeter(model.requires_grad_(False)).decoder(of).full["fusion"] == Flops(wanted)
