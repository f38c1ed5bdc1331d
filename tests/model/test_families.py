"""Families of language models, each built small from its own config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging import version
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from beni.data.batch import pack
from beni.errors import IncompatiblePartsError
from beni.interfaces import FusionContext, Insert
from beni.model.build import Built
from beni.model.llm import attach, decoder_layers, use_packed_attention
from beni.nn.plan import plan_cross
from tests.model.small import CONVERSATIONS, inputs, make

WINDOW = 6
"""Shorter than the documents, so that a window that is ignored shows."""
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.1}
NO_GQA = {"num_key_value_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "mistral": COMMON | {"sliding_window": WINDOW},
    "mixtral": COMMON | {"num_local_experts": 4},
    "qwen2": COMMON | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": COMMON,
    "gemma2": COMMON | {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": COMMON | {"sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "phi3": COMMON | {"sliding_window": WINDOW, "pad_token_id": 0},
    "gpt2": GPT2,
    "opt": COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.1},
    "gpt_neox": COMMON,
    "olmo2": COMMON | NO_GQA,
    "smollm3": COMMON | {"pad_token_id": 0},
    "granite": COMMON | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "cohere": COMMON,
}
REFUSED: dict[str, dict[str, Any]] = {
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
}
(FAMILIES if version.parse(transformers.__version__) >= version.parse("5.24") else REFUSED)["gptj"] = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "rotary_dim": 8,
    "initializer_range": 0.1,
}
"""Its attention goes through transformers' interface since 5.24."""


def llm(family: str, options: dict[str, Any], vocabulary: int = 300) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **options | {"vocab_size": vocabulary})
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A cross-attention model, blocks before every layer, gates open, around an LLM of the family."""
    folder = tmp_path_factory.mktemp(request.param)
    plain = make("inline")
    model = llm(request.param, FAMILIES[request.param], len(plain.tokenizer))
    model.generation_config.pad_token_id = plain.tokenizer.pad_token_id
    model.save_pretrained(folder)
    plain.tokenizer.save_pretrained(folder)
    built = make("xattn", llm={"name": "hf", "model": str(folder)})
    built.model.eval()
    return built


def row_logits(built: Built, row: Any) -> Tensor:
    """Logits where there are targets; gradients are added to the model's."""
    seen: list[Tensor] = []
    handle = built.model.llm.register_forward_hook(lambda module, args, out: seen.append(out.logits[0]))
    built.model(packed=row).loss.backward()
    handle.remove()
    return seen[0].detach()


def take_gradients(built: Built) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in built.model.named_parameters() if p.grad is not None}
    built.model.zero_grad()
    return found


def test_packed_equals_separate(family: Built) -> None:
    docs = [family.composer.compose(sample) for sample in CONVERSATIONS]
    assert max(map(len, docs)) > 2 * WINDOW
    what, many, colour, text, three, turns = docs
    alone = torch.cat([row_logits(family, pack([[doc]], family.composer)) for doc in docs])
    wanted = take_gradients(family)
    together = row_logits(family, pack([[what, many, colour], [text], [three], [turns]], family.composer))
    found = take_gradients(family)
    assert (together - alone).abs().max() < 1e-5 * alone.abs().max()
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values()) / 100
    for name, gradient in wanted.items():
        error = (found[name] - gradient).abs().max() / max(float(gradient.abs().max()), scale)
        assert error < 2e-5, f"the gradient of {name} differs by {error:.1e}"


def test_packed_equals_the_familys_own_attention(family: Built) -> None:
    """Each document by itself, computed with transformers' eager attention: windows, caps and scales included."""
    model = family.model
    for sample in CONVERSATIONS[3:]:
        document = family.composer.compose(sample)
        with torch.no_grad():
            packed = row_logits_only(family, pack([[document]], family.composer))
            padded = inputs(family, (sample,), prompt_only=False)
            model.llm.set_attn_implementation("eager")
            try:
                eager = model(**padded).logits[0, :-1][torch.from_numpy(document.labels[1:] >= 0)]
            finally:
                use_packed_attention(model.llm)
            ours = model(**padded).logits[0, :-1][torch.from_numpy(document.labels[1:] >= 0)]
        scale = float(eager.abs().max())
        torch.testing.assert_close(packed, eager, rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(ours, eager, rtol=0, atol=1e-5 * scale)


def row_logits_only(built: Built, row: Any) -> Tensor:
    seen: list[Tensor] = []
    handle = built.model.llm.register_forward_hook(lambda module, args, out: seen.append(out.logits[0]))
    built.model(packed=row)
    handle.remove()
    return seen[0]


def test_images_reach_every_layer(family: Built) -> None:
    row = pack([[family.composer.compose(CONVERSATIONS[4])]], family.composer)
    row_logits(family, row)
    gates = [p for name, p in family.model.fusion.named_parameters() if name.endswith("attn_gate")]
    assert len(gates) == len(decoder_layers(family.model.llm)) == 3
    assert all(gate.grad is not None and gate.grad.abs() > 0 for gate in gates)
    family.model.zero_grad()


def test_generates_from_padded_rows(family: Built) -> None:
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3}
    together = family.model.generate(**inputs(family, CONVERSATIONS), **options)[:, -3:]
    alone = [family.model.generate(**inputs(family, (sample,)), **options)[0, -3:] for sample in CONVERSATIONS]
    assert together.tolist() == [row.tolist() for row in alone]
    uncached = family.model.generate(**inputs(family, CONVERSATIONS), **options, use_cache=False)[:, -3:]
    assert together.tolist() == uncached.tolist()


@pytest.mark.parametrize("name", REFUSED)
def test_families_that_cannot_be_packed_are_refused(name: str) -> None:
    model = llm(name, REFUSED[name])
    with pytest.raises(IncompatiblePartsError, match=rf"{type(model).__name__}.*see each other"):
        use_packed_attention(model)


@pytest.mark.parametrize("name", sorted({"falcon", "mpt", "gptj"} & REFUSED.keys()))
def test_families_that_drop_the_context_are_refused(name: str) -> None:
    model = llm(name, REFUSED[name])
    with pytest.raises(IncompatiblePartsError, match=rf"{type(model).__name__}.*--fusion inline"):
        attach(model, {0: Insert(torch.nn.Identity())})


def test_refused_before_training_starts(tmp_path: Path) -> None:
    plain = make("inline")
    llm("bloom", REFUSED["bloom"]).save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(IncompatiblePartsError, match="BloomForCausalLM"):
        make("inline", llm={"name": "hf", "model": str(tmp_path)})


@pytest.mark.parametrize("packed", [True, False])
def test_sinks_are_refused(packed: bool, built_by: Callable[[str], Built]) -> None:
    """gpt-oss adds a learned sink to every softmax: leaving it out would be silently wrong."""
    options = COMMON | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": WINDOW}
    model = llm("gpt_oss", options)
    use_packed_attention(model)
    built = built_by("inline")
    plan = pack([[built.composer.compose(CONVERSATIONS[3])]], built.composer).plan
    extra = {"segments": plan} if packed else {}
    ids = torch.zeros(1, len(plan.positions_T), dtype=torch.long)
    with pytest.raises(IncompatiblePartsError, match=r"GptOssAttention.*s_aux"):
        model(
            ids, attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool), position_ids=plan.positions_T[None], **extra
        )


def test_a_layer_that_does_not_exist() -> None:
    model = llm("llama", COMMON)
    with pytest.raises(IncompatiblePartsError, match="decoder layer 3, the LLM has 3"):
        attach(model, {3: Insert(torch.nn.Identity())})


def test_layers_share_one_class() -> None:
    """One subclass for all layers, so that compiled layers share a graph; parameters keep their names."""
    model = llm("llama", COMMON)
    names = list(model.state_dict())
    attach(model, {index: Insert(torch.nn.Linear(32, 32)) for index in range(3)})
    assert len({type(layer) for layer in decoder_layers(model)}) == 1
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("before", [True, False])
def test_inserts_run_on_their_side_of_the_layer(before: bool) -> None:
    class Double(torch.nn.Module):
        def forward(self, hidden: Tensor, context: Any) -> Tensor:
            return hidden * 2

    model = llm("llama", COMMON).eval()
    plain = llm("llama", COMMON).eval()
    layer = decoder_layers(plain)[1]
    if before:
        layer.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
    else:
        layer.register_forward_hook(lambda module, args, out: out * 2)
    attach(model, {1: Insert(Double(), before)})
    nothing = FusionContext(
        torch.zeros(1, 4), plan_cross([(0, 6)], np.zeros((6, 2), dtype=np.int64)), torch.empty(0, dtype=torch.long)
    )
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(model(ids, fusion=nothing).logits, plain(ids).logits)
        assert not torch.equal(model(ids).logits, plain(ids).logits), "without a context the block does not run"
