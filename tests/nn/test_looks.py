"""What parts tell of their attention is what they compute with."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from beni.interfaces import Connector
from beni.nn.aggregator import SpatialAggregator
from beni.nn.attention import cross_attention
from beni.nn.looks import attention_weights, listen, listening
from beni.nn.plan import plan_cross
from beni.types import EncoderSpec, Features, Grid, Size, Windows
from beni_plugins.connectors.perceiver import Perceiver, PerceiverConfig
from tests.model.small import CONVERSATIONS, inputs, make

SPEC = EncoderSpec(Size(16, 16), 4, 12, (0.5,) * 3, (0.5,) * 3)
NONE = torch.empty(0, dtype=torch.long)
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "gemma2": SMALL | {"head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 2.0},
}


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_weights_times_values_are_the_attention(softcap: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.rand(2, 1, 5, 7) < 0.7
    mask[..., 0] = True
    found = attention_weights(q, k, mask, softcap=softcap)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, 5))
    if softcap is None:
        wanted = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
        torch.testing.assert_close(found @ v.repeat_interleave(2, 1), wanted)
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(attention_weights(q, k, added, softcap=softcap), found)


def test_cross_attention_tells_what_it_reads() -> None:
    torch.manual_seed(0)
    spans = np.array([[0, 0], [0, 3], [0, 3], [3, 7], [3, 9], [0, 0]])
    q, k, v = torch.randn(6, 4, 8), torch.randn(11, 2, 8), torch.randn(11, 2, 8)
    text_A = torch.tensor([5, 1, 3, 4])
    plan = plan_cross([(0, 6)], spans)
    quiet = cross_attention(q, k, v, plan)
    with listen(text_A) as heard:
        loud = cross_attention(q, k, v, plan)
    assert torch.equal(loud, quiet), "listening changes nothing"
    [found_AM] = heard.memory
    for row, t in zip(found_AM, text_A.tolist(), strict=True):
        wanted = torch.zeros(11)
        first, last = spans[t]
        for head in range(4 if last > first else 0):
            wanted[first:last] += (k[first:last, head // 2] @ q[t, head] * 8**-0.5).softmax(0) / 4
        torch.testing.assert_close(row, wanted)


def test_cross_attention_of_a_row_that_reads_nothing() -> None:
    with listen(torch.tensor([0, 2])) as heard:
        cross_attention(*torch.randn(3, 3, 2, 8), plan_cross([(0, 3)], np.zeros((3, 2), int)))
    assert torch.equal(heard.memory[0], torch.zeros(2, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_self_attention_is_that_of_transformers(family: str) -> None:
    """Gemma 2 caps its scores, and every other layer sees a window only."""
    torch.manual_seed(0)
    options = FAMILIES[family] | {"num_key_value_heads": 2, "initializer_range": 0.3}
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options)).eval()
    text_A = torch.tensor([3, 17, 18])
    embeds = torch.randn(1, 20, llm.config.hidden_size)
    with torch.no_grad():
        llm.set_attn_implementation("eager")
        wanted = llm(inputs_embeds=embeds, output_attentions=True, use_cache=False).attentions
        llm.set_attn_implementation("beni")
        with listen(text_A) as heard:
            llm(inputs_embeds=embeds, use_cache=False)
    assert len(heard.itself) == len(wanted)
    for ours, theirs in zip(heard.itself, wanted, strict=True):
        torch.testing.assert_close(ours, theirs[0].mean(0)[text_A], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.sum(-1), torch.ones(3))


@pytest.mark.parametrize("variant", ["flamingo", "idefics2"])
def test_latents_tell_what_they_read_of_their_crop(variant: Any) -> None:
    torch.manual_seed(0)
    config = PerceiverConfig(variant=variant, num_latents=3, depth=2, heads=4, kv_heads=2, head_width=8)
    part = Perceiver(config, {"main": SPEC}, 16).eval()
    grids = (Grid(4, 4), Grid(4, 4), Grid(2, 3))
    features = Features(torch.randn(38, 12), grids)
    keys: list[Tensor] = []
    queries: list[Tensor] = []
    for layer in part.resampler.layers:  # type: ignore[union-attr]
        attention = layer[0] if variant == "flamingo" else layer  # type: ignore[index]
        q, k = (attention.to_q, attention.to_kv) if variant == "flamingo" else (attention.q_proj, attention.k_proj)
        q.register_forward_hook(lambda module, args, out: queries.append(out))
        k.register_forward_hook(
            lambda module, args, out: keys.append(out.chunk(2, -1)[0] if variant == "flamingo" else out)
        )
    with torch.no_grad(), listen(NONE) as heard:
        heard.about(grids)
        tokens = part.project(features)
    assert len(tokens) == 9 and len(heard.readings) == 4, "two runs of crops, two layers"
    starts = [0, 16, 32]
    for number, reading in enumerate(heard.readings):
        crops = [(0, 1), (2,)][number // 2]
        assert reading.in_order and reading.grids == grids and reading.encoder == 0
        count = grids[crops[0]].count
        wanted = torch.zeros(len(crops), 3, count)
        for crop in range(len(crops)):
            for head in range(4):
                group = head if variant == "flamingo" else head // 2
                q = queries[number][crop][:, head * 8 : head * 8 + 8]
                k = keys[number][crop][:, group * 8 : group * 8 + 8]
                wanted[crop] += (q @ k.T * 8**-0.5).softmax(-1)[:, :count] / 4
        torch.testing.assert_close(reading.weights_VR, wanted.flatten(0, 1))
        assert (reading.weights_VR.sum(-1) < 1).all(), "latents read latents, too"
        places = [list(range(starts[crop], starts[crop] + count)) for crop in crops for _ in range(3)]
        assert reading.index_VR.tolist() == places


@pytest.mark.parametrize("variant", ["joint", "sep"])
@pytest.mark.parametrize("sizes", [(4, 1), (4, 9), (4,)])
def test_aggregators_tell_what_they_read_of_their_windows(variant: Any, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer: Any = SpatialAggregator(8, sizes, 8, 2, 1, variant).layers[0]
    keys = tuple(torch.randn(5, size, 8) for size in sizes)
    visible = [torch.rand(5, size) < 0.6 for size in sizes]
    for mask in visible:
        mask[:, 0] = True
    under = tuple(((Grid(1, size),) * 5, torch.arange(5 * size).view(5, size)) for size in sizes)
    with torch.no_grad(), listen(NONE) as heard:
        layer(torch.randn(5, 8), Windows(keys, tuple(visible), torch.randn(5, 8), under))
    assert [reading.encoder for reading in heard.readings] == list(range(len(sizes)))
    whole = sum(reading.weights_VR.sum(-1) for reading in heard.readings)
    torch.testing.assert_close(whole, torch.ones(5))
    for reading, mask in zip(heard.readings, visible, strict=True):
        if mask.shape[1] > 1:
            assert (reading.weights_VR[~mask] == 0).all() and (reading.weights_VR[mask] > 0).all()


@pytest.mark.parametrize("variant", ["joint", "sep"])
def test_weights_of_aggregators_make_their_outputs(variant: Any) -> None:
    """The sum of values, by the weights that are told, is what the layer reads."""
    torch.manual_seed(0)
    layer: Any = SpatialAggregator(8, (4, 9), 8, 1, 1, variant).layers[0]
    keys = [torch.randn(5, size, 8) for size in (4, 9)]
    visible = [torch.rand(5, size) < 0.6 for size in (4, 9)]
    for mask in visible:
        mask[:, 0] = True
    query, z_VH = torch.randn(5, 16), torch.randn(5, 8)
    with torch.no_grad():
        read = layer.read(query, z_VH, keys, visible)
        weights = layer.weights(query, z_VH, keys, visible)
        taken = torch.zeros(5, 8)
        for encoder in range(2):
            attention = layer.cross_attn if variant == "joint" else getattr(layer, f"aggregate_{encoder}")
            values = getattr(attention, f"v_proj_{encoder}" if variant == "joint" else "v_proj")(keys[encoder])
            taken += attention.o_proj((weights[encoder][:, 0, :, None] * values).sum(1))
    torch.testing.assert_close(taken, read)


def test_windows_say_which_tokens_they_hold() -> None:
    """The tokens that are told lie at the numbers that are told, in the connector and in the LLM."""
    built = make("sva")
    built.model.eval()
    maps: dict[str, Tensor] = {}
    connector: Any = built.model.connector
    for key, projector in connector.projectors.items():
        projector.register_forward_hook(lambda module, args, out, key=key: maps.update({key: out.flatten(0, 2)}))
    contexts: list[Any] = []
    for block in built.model.fusion.layers.values():  # type: ignore[union-attr, operator]
        block.register_forward_pre_hook(lambda module, args: contexts.append(args[1].windows))
    with torch.no_grad(), listen(NONE) as heard:
        built.model(**inputs(built, CONVERSATIONS[4:5]))
    assert contexts and heard.readings
    for windows in contexts:
        for key, keys_VRC, (grids, index_VR) in zip(connector.encoders, windows.keys, windows.under, strict=True):
            assert torch.equal(maps[key][index_VR], keys_VRC)
            assert sum(grid.count for grid in grids) == len(maps[key])
    parts = {id(module) for module in built.model.fusion.modules()}
    assert {id(reading.reader) in parts for reading in heard.readings} == {True, False}


def test_nobody_listens_outside() -> None:
    built = make("xattn")
    built.model.eval()
    batch = inputs(built, CONVERSATIONS[:1])
    with torch.no_grad():
        quiet = built.model(**batch).logits
        with listen(torch.tensor([0])) as heard:
            loud = built.model(**batch).logits
        told = len(heard.memory), len(heard.itself), len(heard.readings)
        assert listening() is None
        built.model(**batch)
    assert torch.equal(loud, quiet) and told == (3, 3, 1)
    assert told == (len(heard.memory), len(heard.itself), len(heard.readings))


def test_nothing_is_told_of_tokens_that_are_not_handed_on() -> None:
    """Where tiles are put together, or crops are selected, tokens are not those that a layer made."""
    torch.manual_seed(0)
    part = Perceiver(PerceiverConfig(num_latents=3, depth=1), {"main": SPEC}, 16).eval()
    assert isinstance(part, Connector)
    with listen(NONE) as heard:
        heard.about(None)
        part.project(Features(torch.randn(16, 12), (Grid(4, 4),)))
    assert not heard.readings
