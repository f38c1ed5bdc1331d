"""What rows cost: the sum over their documents of what PyTorch counts, whatever is trained."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from beni.config import PeftOptions
from beni.data.batch import PackedBatch, pack
from beni.data.document import Document
from beni.errors import IncompatiblePartsError, Uncountable
from beni.flops.account import FlopMeter, Reading
from beni.flops.count import Flops
from beni.model.build import Built
from beni.model.parts import stacks
from beni.testing.flops import both_passes
from beni.testing.small import make
from beni.training.adapters import add_adapters
from beni.training.quantize import quantize
from tests.model.cube import AROUND, KINDS, SMALL, built_in
from tests.model.small import FUSIONS, INLINE, XATTN, A, B, C, D, E, talk

DIFFERENT = (
    talk("one", (0, "what is it?"), ("a cat",), images=(A,)),
    talk("three", (0, 1, "compare with ", 2, " please"), ("all the same",), images=(B, C, D)),
    talk("turns", ("see: ", 0, " what is it?"), ("a cat",), ("and then?",), ("three",), images=(E,)),
)
"""No image twice."""
TRAINED = {
    "everything": "",
    "all but the language model": "llm.",
    "all but the encoder": "encoders.",
    "the connector and the fusion": "llm. encoders.",
}
"""What is trained, and what therefore is not."""
SMALL_PARTS = FUSIONS | {
    f"inline-{name}": INLINE | {"connector": {"name": name, **SMALL[f"connector {name}"]}}
    for name in ("qformer", "cabstractor")
}


def total(counts: dict[str, Flops]) -> Flops:
    return sum(counts.values(), Flops())


def chosen(parts: tuple[str, str, str]) -> dict[str, Any]:
    named = dict(zip(KINDS, parts, strict=True))
    tables: dict[str, Any] = {kind: {"name": name, **SMALL.get(f"{kind} {name}", {})} for kind, name in named.items()}
    return tables | AROUND.get(f"fusion {named['fusion']}", {})


def freeze(built: Built, frozen: str) -> None:
    for name, parameter in built.model.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(tuple(frozen.split()))))


def alone(built: Built, documents: Sequence[Document]) -> list[PackedBatch]:
    """Each document in a row of its own."""
    return [pack([[document]], built.composer) for document in documents]


def check(tables: dict[str, Any], frozen: str) -> None:
    """Packed in one row, documents cost what they cost one by one."""
    built = make(**tables, batch={"row_tokens": 1 << 20})
    documents = [built.composer.compose(sample) for sample in DIFFERENT]
    freeze(built, frozen)
    row = FlopMeter(built.model).row(pack([[each] for each in documents], built.composer))
    assert total(row.full).model == pytest.approx(both_passes(built.model, alone(built, documents)), rel=1e-6)
    assert total(row.causal).model < total(row.full).model


@pytest.mark.parametrize(("parts", "trained"), zip(SMALL_PARTS, cycle(TRAINED), strict=False))
def test_a_packed_row_costs_what_its_documents_cost(parts: str, trained: str) -> None:
    check(SMALL_PARTS[parts], TRAINED[trained])


@pytest.mark.slow
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("parts", list(built_in()), ids="-".join)
def test_every_combination(parts: tuple[str, str, str], trained: str) -> None:
    try:
        check(chosen(parts), TRAINED[trained])
    except IncompatiblePartsError as refusal:
        pytest.skip(str(refusal))


def test_text_has_no_image_to_pay_for() -> None:
    for tables in (INLINE, XATTN):
        built = make(**tables)
        freeze(built, "")
        text = built.composer.compose(talk("text", ("hello there",), ("general kenobi",)))
        meter = FlopMeter(built.model)
        row = meter.row(pack([[text]], built.composer))
        assert row.full.keys() == {"llm", "head"} | ({"fusion"} if tables is XATTN else set())
        n, targets = len(text), int((text.labels >= 0).sum())
        assert row.full == meter.decoder(Reading(n, n * n, n * (n + 1) / 2, targets)).full


def test_questions_about_one_image_share_it() -> None:
    """A prefix is computed once; each question sees it whole."""
    built = make(**INLINE)
    freeze(built, "")
    asked = [(0, "what is it?"), (0, "how many?")]
    documents = [built.composer.compose(talk("q", turn, ("three",), images=(A,))) for turn in asked]
    head, one, two = documents[0].head, len(documents[0]), len(documents[1])
    row = pack([documents], built.composer)
    a, b = one - head, two - head
    assert Reading.of(row, 16) == Reading(
        positions=head + a + b,
        pairs=head * head + a * (head + a) + b * (head + b),
        seen_pairs=head * (head + 1) / 2 + a * head + a * (a + 1) / 2 + b * head + b * (b + 1) / 2,
        targets=len(row.keep_K),
        visual=16,
        memory=16,
    )
    meter = FlopMeter(built.model)
    apart = meter.row(pack([[document] for document in documents], built.composer)).full
    together = meter.row(row).full
    assert together["encoder.main"] == apart["encoder.main"] and together["llm"].model < apart["llm"].model


def test_of_the_memory_each_pair_counts_that_is_read() -> None:
    built = make(**XATTN)
    documents = [built.composer.compose(sample) for sample in DIFFERENT]
    row = pack([[document] for document in documents], built.composer)
    reading = Reading.of(row, 5 * 4)
    lengths, images = np.array([len(document) for document in documents]), np.array([1, 3, 1])
    assert reading.visual == 0 and reading.memory == 5 * 4
    assert reading.reads == (lengths * images * 4).sum()
    first = [document.images[0].at for document in documents]  # flamingo reads the last image at or before it
    assert reading.seen_reads == 4 * (lengths - first).sum()


WIDE = INLINE | {"llm": {"name": "tiny", "width": 64, "layers": 2, "heads": 4, "ff_width": 128}}


@pytest.mark.parametrize("quant", ["none", "hqq8"])
def test_adapters_and_quantized_bases_are_counted_as_what_they_stand_for(quant: str) -> None:
    if quant != "none":
        pytest.importorskip("hqq")
    built, plain = make(**WIDE), make(**WIDE)
    options = PeftOptions(peft="lora", quant=quant, peft_rank=2)
    quantize(built.model, options.quant, torch.device("cpu"))
    add_adapters(built.model, options)
    for model in (built.model, plain.model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    documents = [built.composer.compose(sample) for sample in DIFFERENT]
    row = pack([[document] for document in documents], built.composer)
    counted, base = FlopMeter(built.model).row(row).full, FlopMeter(plain.model).row(row).full
    adapted = [module for module in built.model.llm.modules() if hasattr(module, "lora_A")]
    low_rank = sum(2 * row.stats.tokens * 2 * (layer.in_features + layer.out_features) for layer in adapted)
    assert adapted and counted["llm"].forward == base["llm"].forward + low_rank
    assert counted["llm"].backward > 0 == base["llm"].backward
    if quant == "none":
        assert total(counted).model == pytest.approx(both_passes(built.model, alone(built, documents)), rel=1e-6)


def test_recomputed_blocks_count_as_hardware_flops() -> None:
    built = make(**XATTN)
    freeze(built, "encoders.")
    documents = [built.composer.compose(sample) for sample in DIFFERENT]
    row = pack([[document] for document in documents], built.composer)
    blocks = [block for stack in stacks(built.model) for block in stack]
    plain, recomputed = FlopMeter(built.model).row(row).full, FlopMeter(built.model, blocks).row(row).full
    assert total(recomputed).model == total(plain).model
    assert recomputed["llm"].again + recomputed["fusion"].again == plain["llm"].forward + plain["fusion"].forward
    assert recomputed["encoder.main"].again == 0, "nothing flows back through what is frozen"
    assert total(plain).again == 0


def test_the_model_stays_as_it_is() -> None:
    built = make(**XATTN)
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    built.model.eval()
    FlopMeter(built.model)
    assert all(torch.equal(value, before[name]) for name, value in built.model.state_dict().items())
    assert not built.model.training and not any(p.is_meta or p.grad is not None for p in built.model.parameters())


class Cubic(nn.Module):
    """Costs more than any sum over positions and pairs of them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x @ x.transpose(-1, -2)
        return self.layer(x) + 0 * (scores @ scores @ x)


class Asks(nn.Module):
    """Wants to know a value."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * float(x.sum() > 0)


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [(Cubic, "FLOPs of llm cannot be told from the sizes"), (Asks, "does not run without values")],
)
def test_what_cannot_be_counted_is_told(wrapper: type[nn.Module], message: str) -> None:
    built = make(**INLINE)
    layer = built.model.llm.model.layers[0]
    layer.mlp = wrapper(layer.mlp)
    with pytest.raises(Uncountable, match=message):
        FlopMeter(built.model)
