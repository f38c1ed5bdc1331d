"""Small models, made once for all tests of this folder."""

from collections.abc import Callable, Iterator

import pytest
import torch

from beni.model.build import Built
from tests.model.small import FUSIONS, make


@pytest.fixture(scope="session")
def built_by() -> Callable[[str], Built]:
    """One model per fusion, shared by tests that leave it as they found it."""
    made: dict[str, Built] = {}

    def get(fusion: str) -> Built:
        if fusion not in made:
            made[fusion] = make(fusion)
        return made[fusion]

    return get


@pytest.fixture(params=FUSIONS)
def built(request: pytest.FixtureRequest, built_by: Callable[[str], Built]) -> Iterator[Built]:
    """An inline model and a cross-attention model with open gates, in evaluation mode and without gradients."""
    found = built_by(request.param)
    found.model.eval().zero_grad()
    yield found
    found.model.eval().zero_grad()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
