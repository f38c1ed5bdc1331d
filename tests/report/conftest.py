"""A small model's composer: real rows without training."""

import pytest

from beni.config import run_config_from_dict
from beni.data.loader import Rows
from beni.data.plan import Lengths, Plan
from beni.model.build import Built, build
from beni.options import BatchConfig
from beni.sample import Sample
from tests.report.drawn import COLOURS, QUESTIONS, MakeRows


@pytest.fixture(scope="session")
def built() -> dict[str, Built]:
    texts = [*QUESTIONS, *COLOURS, "yes", "the sky is blue"] * 2
    return {
        fusion: build(run_config_from_dict({"fusion": {"name": fusion}}), iter(texts)) for fusion in ("inline", "xattn")
    }


@pytest.fixture
def make_rows(built: dict[str, Built]) -> MakeRows:
    def make(samples: list[Sample], fusion: str = "inline", augment: float = 0.0) -> Rows:
        composer = built[fusion].composer
        plan = Plan([Lengths(samples, composer)], (), BatchConfig(row_images=64), seed=0, shuffle=False)
        return Rows([samples], plan, composer, augment=augment)

    return make
