"""Layers of the encoder added inside the LLM: equal to Qwen3-VL's, each through a connector of its own."""

from typing import Any

import pytest
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from beni.data.batch import pack
from beni.errors import ConfigError, IncompatiblePartsError
from beni.interfaces import FusionContext, LLMSpec, VisualSpec
from beni.nn.plan import plan_cross
from beni.types import Features, Grid
from beni_plugins.fusions.deepstack import DeepStack, DeepStackConfig
from tests.model.small import CONVERSATIONS, ENCODER, INLINE, SELECTED, SEVERAL_LAYERS, XATTN, make


def test_equals_qwen3_vl() -> None:
    torch.manual_seed(0)
    model = Qwen3VLTextModel(
        Qwen3VLTextConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        )
    ).eval()
    x_BTD, at_V = torch.randn(2, 6, 16), torch.tensor([1, 2, 8, 9, 10])
    levels = tuple(torch.randn(5, 16) for _ in range(3))
    mask_BT = torch.zeros(12, dtype=torch.bool).index_fill(0, at_V, True).view(2, 6)
    with torch.no_grad():
        plain = model(inputs_embeds=x_BTD).last_hidden_state
        theirs = model(inputs_embeds=x_BTD, visual_pos_masks=mask_BT, deepstack_visual_embeds=list(levels))
    fusion = DeepStack(DeepStackConfig(), LLMSpec(16, 4), VisualSpec(16, levels=3))
    plan = plan_cross([(0, 6), (6, 12)], torch.zeros(12, 2, dtype=torch.long).numpy())
    context = FusionContext(torch.zeros(1, 16), plan, at_V, levels=levels)
    for layer, insert in fusion.inserts().items():
        assert not insert.before

        def add(module: Any, args: Any, out: Any, block: Any = insert.block) -> Any:
            return block(out, context)

        model.layers[layer].register_forward_hook(add)
    with torch.no_grad():
        ours = model(inputs_embeds=x_BTD).last_hidden_state
    torch.testing.assert_close(ours, theirs.last_hidden_state)
    assert not torch.allclose(ours, plain, atol=1e-2)


def test_the_last_chosen_layer_gives_the_visual_tokens() -> None:
    """The others give what is added, in their order."""
    tokens_ND = torch.arange(12.0).view(2, 6)
    first, second, last = Features(tokens_ND, (Grid(1, 2),), torch.ones(1, 1, 6)).split(3)
    assert torch.equal(first.tokens_ND, tokens_ND[:, :2]) and torch.equal(second.tokens_ND, tokens_ND[:, 2:4])
    assert torch.equal(last.tokens_ND, tokens_ND[:, 4:]) and last.prefix_CPD is not None
    assert last.prefix_CPD.shape == (1, 1, 2)
    built = make("deepstack")
    assert [len(model) for model in (built.model.level_connectors, built.model.fusion.inserts())] == [2, 2]
    width = ENCODER["width"]
    assert {connector.in_width for connector in built.model.connectors()} == {width}
    seen: list[torch.Tensor] = []
    for connector in built.model.connectors():
        connector.register_forward_pre_hook(lambda module, args: seen.append(args[0]["main"].tokens_ND))
    encoded: list[torch.Tensor] = []
    built.model.encoders["main"].register_forward_hook(lambda module, args, out: encoded.append(out.tokens_ND))
    built.model(packed=pack([[built.composer.compose(CONVERSATIONS[0])]], built.composer))
    last_seen, *others = (seen[n] for n in sorted(range(3), key=lambda n: n != 2))
    assert torch.equal(last_seen, encoded[0][:, -width:])
    assert all(torch.equal(x, encoded[0][:, n * width : (n + 1) * width]) for n, x in enumerate(others))


def test_every_layers_connector_is_trained_on_0_1_and_3_images() -> None:
    built = make("deepstack")
    row = pack([[built.composer.compose(sample)] for sample in CONVERSATIONS], built.composer)
    built.model(packed=row).loss.backward()
    parts = [*built.model.connectors(), built.model.encoders["main"].layers]
    assert all(p.grad is not None and p.grad.any() for part in parts for p in part.parameters())


@pytest.mark.parametrize(("start", "stride", "behind"), [(0, 1, [0, 1]), (2, 3, [2, 5])])
def test_behind_which_layers(start: int, stride: int, behind: list[int]) -> None:
    fusion = DeepStack(DeepStackConfig(start=start, stride=stride), LLMSpec(8, 8), VisualSpec(8, levels=2))
    assert list(fusion.inserts()) == behind and not list(fusion.parameters())


def test_refusals() -> None:
    with pytest.raises(IncompatiblePartsError, match=r"several layers of each encoder.*main 1; .*--encoder\.outputs"):
        make("deepstack", encoders={"main": ENCODER})
    with pytest.raises(IncompatiblePartsError, match=r"main 3, other 1"):
        make("deepstack", encoders={"main": ENCODER | SEVERAL_LAYERS, "other": ENCODER})
    with pytest.raises(IncompatiblePartsError, match=r"connector 'dragonfly' with these options would select"):
        make("deepstack", **SELECTED)
    with pytest.raises(ConfigError, match=r"behind decoder layer 2, but of the LLM's 3, .* 1 is the last"):
        make("deepstack", fusion={"name": "deepstack", "start": 1})
    with pytest.raises(IncompatiblePartsError, match=r"behind every row.*newline block"):
        make("deepstack", connector=XATTN["connector"])
    with pytest.raises(ConfigError, match="stride"):
        DeepStackConfig(stride=0)
    assert make("deepstack", fusion=INLINE["fusion"]).model.connector.in_width == 3 * ENCODER["width"], "joined"
