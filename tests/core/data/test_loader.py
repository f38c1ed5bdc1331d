"""Batches: the plan's rows, the same whoever loads them and however many share them."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from beni.data.batch import PackedBatch
from beni.data.document import Composer
from beni.data.loader import Rows, batches
from beni.data.order import ORDERS
from beni.data.plan import Lengths, Place, Plan
from beni.data.spec import judged, training
from beni.options import BatchConfig
from beni.sample import Sample, Turn, vqa_sample
from tests.conftest import MakePicture, write_llava
from tests.core.data.tiny import composer

BATCH = BatchConfig(rows=2, row_tokens=60)


@pytest.fixture
def samples(picture: MakePicture) -> list[Sample]:
    """Twelve questions about pictures and twelve texts; every other one counts half in the loss."""
    found = [vqa_sample(f"p{n}", picture(n), "?" * (n + 1), "y" * (n % 5 + 1)) for n in range(12)]
    found += [Sample(f"t{n}", (Turn("text", ("x" * (2 * n + 2),)),)) for n in range(12)]
    return [dataclasses.replace(sample, loss_weight=0.5 if n % 2 else 1.0) for n, sample in enumerate(found)]


def rows_of(samples: list[Sample], order: str) -> Rows:
    make = composer()
    config = dataclasses.replace(BATCH, order=order)  # type: ignore[arg-type]
    return Rows([samples], Plan([Lengths(samples, make)], (), config, seed=3), make, augment=0.2)


def equal(a: PackedBatch, b: PackedBatch) -> bool:
    weights = (a.weights_K is None) == (b.weights_K is None) and (
        a.weights_K is None or b.weights_K is None or torch.equal(a.weights_K, b.weights_K)
    )
    return (
        weights
        and a.stats == b.stats
        and all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("ids_T", "keep_K", "targets_K"))
        and all(torch.equal(a.visual.pixels[key], b.visual.pixels[key]) for key in a.visual.pixels)
    )


@pytest.mark.parametrize("order", ORDERS)
def test_workers_processes_and_a_later_start_change_nothing(samples: list[Sample], order: str) -> None:
    rows = rows_of(samples, order)
    steps = rows.plan.steps(0) + 2
    walked = list(batches(rows, Place(), steps, workers=0))
    for workers in (1, 2):
        loaded = list(batches(rows, Place(), steps, workers))
        assert [place for place, _ in loaded] == [place for place, _ in walked]
        assert all(equal(a, b) for x, y in zip(walked, loaded, strict=True) for a, b in zip(x[1], y[1], strict=True))
    shares = [list(batches(rows, Place(), steps, workers=0, rank=rank, world=2)) for rank in (0, 1)]
    for step, (whole, one, other) in enumerate(zip(walked, *shares, strict=True)):
        assert equal(whole[1][0], one[1][0]) and equal(whole[1][1], other[1][0]), step
    for (place, _), (_, following) in pairwise(walked):
        [(_, sought)] = batches(rows_of(samples, order), place, 1, workers=0)
        assert all(equal(a, b) for a, b in zip(following, sought, strict=True))


def texts_of(batch: PackedBatch, make: Composer) -> dict[str, float]:
    """Text of each segment with its targets in brackets, and what they count."""
    found, weights = {}, torch.ones(len(batch.keep_K)) if batch.weights_K is None else batch.weights_K
    weight_at = dict(zip((batch.keep_K + 1).tolist(), weights.tolist(), strict=True))
    for segment in batch.segments:
        at = [position for position in range(segment.start, segment.end) if position in weight_at]
        decode = make.template.tokenizer.decode
        ids = batch.ids_T.tolist()
        parts = (ids[segment.start : at[0]], ids[at[0] : at[-1] + 1]) if at else (ids[segment.start : segment.end], [])
        text = f"{decode(parts[0])}[{decode(parts[1])}]".replace("<image>" * 3, "<image>")
        found[text] = {weight_at[position] for position in at}.pop() if at else 0.0
    return found


def test_sources_of_a_mixture_have_templates_and_weights_of_their_own(tmp_path: Path) -> None:
    """Golden: what the model reads, and what it is asked again when it is judged."""

    def talk(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    captions = [{"id": "c", "image": "red.png", "conversations": talk("<image>", "a red thing")}]
    chats = [{"id": "d", "image": "blue.png", "conversations": talk("<image>\nwhat?", "blue")}]
    specs = [
        f"llava:{write_llava(tmp_path, captions, 'captions.json')}?template=plain&loss_weight=0.25",
        f"llava:{write_llava(tmp_path, chats, 'chats.json')}",
        f"llava:{write_llava(tmp_path, chats, 'own.json')}?template={tmp_path / 'own.jinja'}",
    ]
    (tmp_path / "own.jinja").write_text("{% for m in messages %}({{ m.role }}){{ m.content }}{% endfor %}")
    make, sources = composer(template="vicuna"), training(specs)
    plan = Plan([Lengths(samples, make) for samples in sources], (), BatchConfig(row_tokens=500), 0)
    [row] = plan.rows(0)
    rows = Rows(sources, plan, make)  # type: ignore[arg-type]
    assert texts_of(rows.pack(rows.trees(row), 0), make) == {
        "<s><image>\n[a red thing</s>]": 0.25,
        "<s>USER: <image>\nwhat? ASSISTANT: [blue</s>]": 1,
        "(user)<image>\nwhat?[(assistant)blue</s>]": 1,
    }
    asked = [make.compose(samples[0], prompt_only=True) for samples in judged(specs, ()).values()]
    assert [make.template.tokenizer.decode(document.ids).replace("<image>" * 3, "<image>") for document in asked] == [
        "<s><image>\n",
        "<s>USER: <image>\nwhat? ASSISTANT: ",
        "(user)<image>\nwhat?",
    ]
