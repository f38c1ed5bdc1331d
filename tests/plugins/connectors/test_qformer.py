"""The Q-Former is BLIP-2's, starts with queries that differ, and takes BLIP-2's weights under both of its names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Blip2Config, Blip2Model, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

from beni.errors import ConfigError
from beni_plugins.connectors.qformer import QFormer, QFormerConfig
from tests.plugins.specs import features, spec

SMALL: dict[str, Any] = {"num_queries": 3, "width": 16, "depth": 3, "heads": 2, "ff_multiple": 2}


def connector(weights: str = "none", seed: int = 0) -> QFormer:
    torch.manual_seed(seed)
    return QFormer(QFormerConfig(weights=weights, **SMALL), {"main": spec(12)}, 24).eval()


def blip2() -> Blip2Model:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28
        ),
        qformer_config=Blip2QFormerConfig(encoder_hidden_size=12, **sizes),
        text_config=OPTConfig(
            hidden_size=24, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8, word_embed_proj_dim=24
        ),
        num_query_tokens=3,
    )
    model = Blip2Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def lavis_name(name: str) -> str:
    """LAVIS's name of what transformers calls `name`."""
    name = name.replace("qformer.layernorm.", "Qformer.bert.embeddings.LayerNorm.")
    name = name.replace("attention.attention.", "attention.self.").replace("language_projection.", "opt_proj.")
    return name.replace("qformer.encoder.", "Qformer.bert.encoder.")


@pytest.mark.parametrize("names", ["transformers", "lavis"])
def test_equals_blip2(tmp_path: Path, names: str) -> None:
    model = blip2()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("vision_model")}
    if names == "lavis":
        state = {lavis_name(name): value for name, value in state.items()}
        state |= {"Qformer.bert.encoder.layer.0.intermediate.dense.weight": torch.zeros(2, 2)}  # of its text
        state |= {"Qformer.bert.encoder.layer.0.output.dense.weight": torch.zeros(2, 2)}
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "blip2.safetensors")
    part = connector(str(tmp_path / "blip2.safetensors"))
    assert part.load_pretrained() is not None
    x_CND = torch.randn(2, 5, 12)
    with torch.no_grad():
        read = model.qformer(query_embeds=model.query_tokens.expand(2, -1, -1), encoder_hidden_states=x_CND)
        theirs = model.language_projection(read.last_hidden_state)
        ours = part.project(features(*x_CND))
    torch.testing.assert_close(ours, theirs.flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_every_nth_layer_reads_the_crop() -> None:
    part = connector()
    assert [layer.has_cross_attention for layer in part.blocks()] == [True, False, True]
    assert torch.pdist(part.query_QD.detach()).min() > 0.01


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"heads 3 do not divide --connector\.width 16"):
        QFormerConfig(width=16, heads=3)
    with pytest.raises(ConfigError, match=r"--connector\.cross-every"):
        QFormerConfig(cross_every=0)
