"""Parts start from the weights of the models they were published with, and then compute what these compute."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    Idefics2Config,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    LlavaModel,
    MistralConfig,
)
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaTextModel

from beni.config import choose
from beni.errors import ConfigError
from beni.interfaces import Connector, Fusion, LLMSpec, VisualSpec, WindowSpec
from beni.types import Features, Grid
from beni_plugins.connectors.concat import Concat, ConcatConfig
from beni_plugins.connectors.dragonfly import Dragonfly
from beni_plugins.connectors.mlp import Mlp, MlpConfig
from beni_plugins.connectors.perceiver import Perceiver, PerceiverConfig
from beni_plugins.connectors.sva import Sva, SvaConfig
from beni_plugins.fusions.inline import Inline, InlineConfig
from beni_plugins.fusions.sva import Aggregation, AggregationConfig
from beni_plugins.fusions.xattn import CrossAttention, CrossAttentionConfig
from tests.golden.reference import golden
from tests.plugins.fusions.test_xattn import immediate, reading
from tests.plugins.specs import features, spec

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
OTHERS = {"model.embed_tokens.weight": torch.zeros(2, 2), "model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}
"""What else is in the file of a whole model."""


def connector(cls: type[Connector], config: Any, width: int, out: int) -> Connector:
    torch.manual_seed(1)
    return cls(config, {"main": spec(width)}, out)


def saved(path: Path, state: Mapping[str, Tensor]) -> str:
    save_file({name: tensor.detach().contiguous() for name, tensor in {**OTHERS, **state}.items()}, path)
    return str(path)


def drawn(module: nn.Module) -> nn.Module:
    """With random weights of some size, also where a module starts from zeros or ones."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


# ---------------------------------------------------------------------------------------------------- published files


@pytest.mark.parametrize("prefix", ["mm_projector.", "model.mm_projector.", "base_model.model.model.mm_projector."])
def test_llava(tmp_path: Path, prefix: str) -> None:
    """A `mm_projector.bin` of the first stage, of the second, and beside LoRA adapters."""
    file = golden("llava_mlp2x_gelu")
    torch.save(under(prefix, file["w"]), tmp_path / "mm_projector.bin")
    part = connector(Mlp, MlpConfig(weights=str(tmp_path / "mm_projector.bin")), 12, 32)
    provenance = part.load_pretrained()
    assert provenance is not None and provenance.origin.endswith("mm_projector.bin") and len(provenance.sha256) == 64
    out = part.project(features(*file["in"]["tokens"]))
    torch.testing.assert_close(out, file["out"]["tokens"].flatten(0, 1), **TOLERANCE)


def test_minigpt_v2(tmp_path: Path) -> None:
    file = golden("minigpt4v2_concat")
    torch.save({"model": under("llama_proj.", file["w"]), "epoch": 3}, tmp_path / "checkpoint.pth")
    part = connector(Concat, ConcatConfig(order="raster4", weights=str(tmp_path / "checkpoint.pth")), 12, 32)
    part.load_pretrained()
    out = part.project(Features(file["in"]["tokens"].flatten(0, 1), (Grid(4, 4),) * 2))
    torch.testing.assert_close(out, file["out"]["tokens"].flatten(0, 1), **TOLERANCE)


def test_open_flamingos_perceiver(tmp_path: Path) -> None:
    file = golden("flamingo_perceiver")
    path = saved(tmp_path / "of.safetensors", under("perceiver.", file["w"]))
    part = connector(Perceiver, PerceiverConfig(num_latents=5, heads=4, head_width=8, weights=path), 32, 32)
    part.load_pretrained()
    out = part.project(features(*file["in"]["x"].flatten(0, 2)))
    torch.testing.assert_close(out, file["out"]["latents"].flatten(0, 2), **TOLERANCE)


@pytest.mark.parametrize(
    "block", ["lang_encoder.transformer.blocks.{}.gated_cross_attn_layer.", "lang_encoder.gated_cross_attn_layers.{}."]
)
def test_open_flamingos_cross_attention(tmp_path: Path, block: str) -> None:
    file = golden("flamingo_gated_xattn")
    state = under(block.format(1), file["w"]) | under(block.format(3), {k: v + 1 for k, v in file["w"].items()})
    path = saved(tmp_path / "of.safetensors", state)
    config = CrossAttentionConfig(every=2, heads=4, head_width=8, weights=path)
    fusion = CrossAttention(config, LLMSpec(32, 4), VisualSpec(24))
    fusion.load_pretrained()
    context = immediate(file["in"]["media"], file["in"]["media_locations"])
    out = fusion.inserts()[1].block(file["in"]["x"], context)
    torch.testing.assert_close(out, file["out"]["y"], **TOLERANCE)
    torch.testing.assert_close(fusion.layers["3"].ff_gate, file["w"]["ff_gate"] + 1)  # type: ignore[union-attr]


CAMBRIANS = {"fine": spec(6, side=32), "coarse": spec(4, side=32, stride=16)}
CAMBRIAN_NAMES: dict[str, Callable[[str], str]] = {
    "projectors.fine": lambda rest: f"model.mm_projector_aux_0{rest}",
    "projectors.coarse": lambda rest: f"model.mm_projector_aux_1{rest}",
    "query_GC": lambda rest: f"model.vision_query{rest}",
    "samplers.0": lambda rest: f"model.vision_sampler_0{rest}",
    "samplers.1": lambda rest: f"model.vision_sampler_1{rest}",
    "project_out": lambda rest: f"model.mm_projector{rest}",
    "layers.1.sampler": lambda rest: f"model.vision_sampler_layers.0{rest}",
    "layers.3.sampler": lambda rest: f"model.vision_sampler_layers.1{rest}",
}


def cambrian_name(name: str) -> str:
    """Cambrian-1's name of a tensor; `sep` has its groups in a module of their own."""
    head = next(head for head in CAMBRIAN_NAMES if name.startswith(head))
    rest = name.removeprefix(head)
    for group in (".aggregate_0", ".aggregate_1"):
        rest = rest.replace(group, f"{group}.attention_layer")
    return CAMBRIAN_NAMES[head](rest)


@pytest.mark.parametrize("variant", ["joint", "sep"])
def test_cambrians_aggregators(tmp_path: Path, variant: Any) -> None:
    def both(weights: str) -> tuple[Sva, Aggregation]:
        torch.manual_seed(len(weights))
        sva = SvaConfig(sides=(2, 1), width=8, heads=2, variant=variant, weights=weights)
        windows = WindowSpec((4, 1), 8)
        inside = AggregationConfig(start=1, stride=2, heads=2, variant=variant, weights=weights)
        return Sva(sva, CAMBRIANS, 12), Aggregation(inside, LLMSpec(16, 5), VisualSpec(12, windows))

    theirs = both("none")
    state = {cambrian_name(name): value for part in theirs for name, value in part.state_dict().items()}
    for ours, source in zip(both(saved(tmp_path / "cambrian.safetensors", state)), theirs, strict=True):
        before = next(iter(ours.state_dict().values())).clone()
        assert ours.load_pretrained() is not None
        assert not torch.equal(before, next(iter(ours.state_dict().values())))
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in ours.state_dict().items())


def test_llava_nexts_residual_blocks(tmp_path: Path) -> None:
    source = connector(Mlp, MlpConfig(kind="mlp2x_res1x_gelu"), 6, 8).state_dict()
    block = {"layers.3.norm.": "3.pre_norm.", "layers.3.layers.": "3.proj.", "layers.": ""}

    def theirs(name: str) -> str:
        head = next(head for head in block if name.startswith(head))
        return f"model.mm_projector.{block[head]}{name.removeprefix(head)}"

    path = saved(tmp_path / "next.safetensors", {theirs(name): value + 1 for name, value in source.items()})
    part = connector(Mlp, MlpConfig(kind="mlp2x_res1x_gelu", weights=path), 6, 8)
    part.load_pretrained()
    assert all(torch.equal(value, source[name] + 1) for name, value in part.state_dict().items())


# ------------------------------------------------------------------------------------------- classes of transformers


def test_equals_transformers_llava(tmp_path: Path) -> None:
    vision = CLIPVisionConfig(hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = LlamaConfig(hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    model = drawn(LlavaModel(LlavaConfig(vision_config=vision, text_config=text)))
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    part = connector(Mlp, MlpConfig(weights=str(tmp_path)), 12, 32)
    part.load_pretrained()
    x_CND = torch.randn(2, 5, 12)
    theirs = model.multi_modal_projector(x_CND)  # type: ignore[operator]
    torch.testing.assert_close(part.project(features(*x_CND)), theirs.flatten(0, 1), **TOLERANCE)


def test_equals_transformers_idefics2(tmp_path: Path) -> None:
    sizes = {"n_latents": 3, "depth": 2, "n_heads": 4, "head_dim": 6, "num_key_value_heads": 2}
    sizes |= {"resampler_n_latents": 3, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 6}
    config = Idefics2Config(
        vision_config={"hidden_size": 12},
        text_config=MistralConfig(hidden_size=16, intermediate_size=40),
        perceiver_config={**sizes, "hidden_size": 16, "attn_implementation": "eager"},
    )
    config._attn_implementation = "eager"
    theirs = drawn(Idefics2Connector(config))
    path = saved(tmp_path / "i.safetensors", under("model.connector.", theirs.state_dict()))
    options: dict[str, Any] = {"num_latents": 3, "depth": 2, "heads": 4, "head_width": 6, "kv_heads": 2}
    part = connector(
        Perceiver, PerceiverConfig(variant="idefics2", projection_width=40, weights=path, **options), 12, 16
    )
    part.load_pretrained()
    x_CND = torch.randn(2, 5, 12)
    expected = theirs(x_CND, torch.ones(2, 5, dtype=torch.long)).flatten(0, 1)
    torch.testing.assert_close(part.project(features(*x_CND)), expected, **TOLERANCE)


def test_equals_transformers_idefics3(tmp_path: Path) -> None:
    sizes = {"vision_config": {"hidden_size": 12}, "text_config": {"model_type": "llama", "hidden_size": 32}}
    theirs = drawn(Idefics3Connector(Idefics3Config(scale_factor=2, **sizes)))
    path = saved(tmp_path / "i.safetensors", under("model.connector.", theirs.state_dict()))
    part = connector(Concat, ConcatConfig(bias=False, weights=path), 12, 32)
    part.load_pretrained()
    x_CND = torch.randn(2, 16, 12)
    out = part.project(Features(x_CND.flatten(0, 1), (Grid(4, 4),) * 2))
    torch.testing.assert_close(out, theirs(x_CND).flatten(0, 1), **TOLERANCE)


def test_equals_transformers_mllama(tmp_path: Path) -> None:
    """Its layers 1 and 3 are cross-attention, before what is layer 1 and layer 2 of the language model alone; the
    projector in front of them makes tokens of the language model's width, whatever the encoder's is."""
    config = MllamaTextConfig(
        hidden_size=16,
        intermediate_size=56,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        cross_attention_layers=[1, 3],
        vocab_size=8,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    model: Any = drawn(MllamaTextModel(config))
    path = saved(tmp_path / "m.safetensors", under("model.language_model.", model.state_dict()))
    options: dict[str, Any] = {"variant": "mllama", "heads": 4, "kv_heads": 2, "head_width": 4, "ff_multiple": 3.5}
    fusion_config, llm = CrossAttentionConfig(layers=(1, 2), weights=path, **options), LLMSpec(16, 3)
    fusion = CrossAttention(fusion_config, llm, VisualSpec(fusion_config.visual_width(llm, 12)))
    fusion.load_pretrained()
    projector = nn.Linear(12, 16)
    path = saved(tmp_path / "p.safetensors", under("model.multi_modal_projector.", projector.state_dict()))
    part = connector(Mlp, MlpConfig(kind="linear", weights=path), 12, fusion_config.visual_width(llm, 12))
    part.load_pretrained()
    assert torch.equal(part.layers[0].weight, projector.weight)  # type: ignore[index, union-attr]
    x_BTD, memory_BMD = torch.randn(2, 5, 16), torch.randn(2, 6, 16)
    context = reading(memory_BMD.flatten(0, 1), [(0, 5), (5, 10)], [(0, 6)] * 5 + [(6, 12)] * 5)
    for ours, index in ((1, 1), (2, 3)):
        theirs = model.layers[index](
            x_BTD,
            cross_attention_states=memory_BMD,
            cross_attention_mask=torch.zeros(2, 1, 5, 6),  # None would be taken for causal
            attention_mask=None,
            full_text_row_masked_out_mask=None,
        )
        torch.testing.assert_close(fusion.inserts()[ours].block(x_BTD, context), theirs, **TOLERANCE)


# ------------------------------------------------------------------------------------------------- everything else


def test_a_part_of_a_run_of_its_own(tmp_path: Path) -> None:
    """A folder with a whole model of beni, in which the part's names stand behind its kind."""
    source = connector(Mlp, MlpConfig(), 6, 8)
    saved(tmp_path / "model.safetensors", under("connector.", source.state_dict()))
    part = connector(Mlp, MlpConfig(weights=str(tmp_path)), 6, 8)
    nn.init.zeros_(part.layers[0].weight)  # type: ignore[index, union-attr]
    part.load_pretrained()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in part.state_dict().items())


def test_dragonfly_starts_from_its_inner_connector(tmp_path: Path) -> None:
    inner = connector(Mlp, MlpConfig(kind="linear"), 6, 8)
    state = {f"vision_embed_tokens.{name.rpartition('.')[2]}": value for name, value in inner.state_dict().items()}
    path = saved(tmp_path / "d.safetensors", state)
    chosen: tuple[dict[str, Any], ...] = (
        {"weights": path, "inner": {"name": "mlp", "kind": "linear"}},
        {"inner": {"name": "mlp", "kind": "linear", "weights": path}},
    )
    for options in chosen:
        part = connector(Dragonfly, choose("connector", "dragonfly", options).config, 6, 8)
        nn.init.zeros_(next(part.parameters()))
        assert part.load_pretrained() is not None
        assert torch.equal(part.inner.layers[0].weight, inner.layers[0].weight)  # type: ignore[union-attr, index]


def test_nothing_is_loaded_by_default() -> None:
    part = connector(Mlp, MlpConfig(), 6, 8)
    before = part.state_dict()["layers.0.weight"].clone()
    assert part.load_pretrained() is None
    assert torch.equal(part.state_dict()["layers.0.weight"], before)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"mm_projector.0.weight": torch.zeros(8, 6)}, r"holds 1 of its 4 tensors.*'layers.0.bias' is missing"),
        ({}, r"holds 0 of its 4 tensors.*'layers.0.weight' is missing"),
        (
            {f"mm_projector.{n}.{kind}": torch.zeros(8, 4) for n in (0, 2) for kind in ("weight", "bias")},
            r"has 'layers.0.weight' as 8×4 where this model wants 8×6: set the part's options",
        ),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path: Path, state: dict[str, Tensor], said: str) -> None:
    part = connector(Mlp, MlpConfig(weights=saved(tmp_path / "w.safetensors", state)), 6, 8)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    with pytest.raises(ConfigError, match=said):
        part.load_pretrained()
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


def test_a_part_without_weights_cannot_start_from_any(tmp_path: Path) -> None:
    part: Fusion = Inline(InlineConfig(weights=saved(tmp_path / "w.safetensors", {})), LLMSpec(8, 2), VisualSpec(8))
    with pytest.raises(ConfigError, match=r"Inline has no weights"):
        part.load_pretrained()
