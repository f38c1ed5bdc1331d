"""A step of the loop: what its gradient is, whatever its rows hold and count."""

import dataclasses

import pytest
import torch
from torch import Tensor

from beni.data.batch import PackedBatch, pack
from beni.data.plan import Place
from beni.model.build import Built
from beni.options import OptimConfig
from beni.processes import Processes
from beni.sample import Sample
from beni.testing.small import CONVERSATIONS, make
from beni.training.checkpoint import Position
from beni.training.loop import StepReport, train_loop

ALONE = Processes(0, 1, torch.device("cpu"), None)
WEIGHTS = (1.0, 0.25, 3.0, 0.5, 1.0, 0.25)


@pytest.fixture(scope="module")
def built() -> Built:
    return make(batch={"row_tokens": 1 << 20})


def weighted(*weights: float) -> list[Sample]:
    return [dataclasses.replace(s, loss_weight=w) for s, w in zip(CONVERSATIONS, weights, strict=True)]


def rows(built: Built, samples: list[Sample]) -> list[PackedBatch]:
    """Two rows: the questions about one image as a tree, and the rest."""
    docs = [built.composer.compose(sample) for sample in samples]
    return [pack([docs[:3], [docs[3]]], built.composer), pack([[doc] for doc in docs[4:]], built.composer)]


def step(built: Built, batches: list[PackedBatch]) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients) of one step, in which nothing is learned."""
    gradients: dict[str, Tensor] = {}
    reports: list[StepReport] = []

    def keep() -> None:
        gradients.update({n: p.grad.clone() for n, p in built.model.named_parameters() if p.grad is not None})

    groups = [{"params": list(built.model.parameters()), "lr": 0.0, "peak_lr": 0.0}]
    train_loop(
        built.model,
        torch.optim.SGD(groups),
        iter([(Place(0, 1), batches)]),
        Position(),
        1,
        OptimConfig(),
        ALONE,
        after_step=reports.append,
        after_backward=keep,
    )
    return float(reports[0].loss), gradients


def alone(built: Built, sample: Sample) -> tuple[float, int, dict[str, Tensor]]:
    """(loss, targets, gradients) of one document without a weight: the sum over its targets."""
    batch = pack([[built.composer.compose(dataclasses.replace(sample, loss_weight=1.0))]], built.composer)
    assert batch.weights_K is None
    built.model.zero_grad()
    loss = built.model(packed=batch).loss
    loss.backward()
    found = {n: p.grad.clone() for n, p in built.model.named_parameters() if p.grad is not None}
    built.model.zero_grad()
    return float(loss.detach()), batch.stats.targets, found


@pytest.mark.parametrize("weights", [WEIGHTS, (1.0,) * 6, (0.0, 1.0, 0.0, 1.0, 0.0, 1.0), (0.01,) * 6])
def test_the_gradient_is_the_weighted_mean_of_the_documents(built: Built, weights: tuple[float, ...]) -> None:
    """Σ w·nll / Σ w, against every document computed by itself; a weight of 0 is a document that is not there."""
    samples = weighted(*weights)
    parts = [(w, *alone(built, sample)) for w, sample in zip(weights, samples, strict=True) if w]
    total = sum(w * targets for w, _, targets, _ in parts)
    batches = rows(built, samples)
    loss, gradients = step(built, batches)
    assert sum(batch.stats.weight for batch in batches) == pytest.approx(total, rel=1e-6)
    assert loss == pytest.approx(sum(w * part for w, part, _, _ in parts) / total, rel=1e-5)
    for name, found in gradients.items():
        expected = torch.stack([w * each[name] for w, _, _, each in parts]).sum(0) / total
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()) + 1e-8)


def test_without_weights_nothing_is_multiplied(built: Built) -> None:
    batches = rows(built, weighted(*(1.0,) * 6))
    assert all(batch.weights_K is None for batch in batches)
    assert all(batch.stats.weight == batch.stats.targets for batch in batches)


def test_equal_weights_are_no_weights(built: Built) -> None:
    (plain, _), (halved, _) = (step(built, rows(built, weighted(*(w,) * 6))) for w in (1.0, 0.5))
    assert plain == pytest.approx(halved, rel=1e-6)


def test_a_step_in_which_nothing_counts_changes_nothing(built: Built) -> None:
    loss, gradients = step(built, rows(built, weighted(*(0.0,) * 6)))
    assert loss == 0 and not any(torch.count_nonzero(gradient) for gradient in gradients.values())
