"""Families of language models, each built small from its own config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beni.data.batch import pack
from beni.errors import IncompatiblePartsError
from beni.interfaces import FusionContext, Insert
from beni.model.build import Built
from beni.model.llm import attach, decoder_layers, use_packed_attention
from beni.nn.plan import plan_cross
from tests.model.families import COMMON, FAMILIES, PAGE, REFUSED, WINDOW, llm, page
from tests.model.small import CONVERSATIONS, inputs, make


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


def test_three_steps_lower_the_loss(family: Built) -> None:
    model = family.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    row = pack([[family.composer.compose(sample)] for sample in CONVERSATIONS], family.composer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = model(packed=row).loss
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.load_state_dict(before)
    assert losses == sorted(losses, reverse=True)


@pytest.mark.skipif("gptj" in REFUSED, reason="the page was written with a later release of transformers")
def test_the_page_says_what_is_tested() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run python -m tests.model.families"


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
