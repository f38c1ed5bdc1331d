"""Aggregators between the LLM's layers: where they stand, what they change, and that they are trained."""

import pytest
import torch

from beni.data.batch import pack
from beni.errors import ConfigError, IncompatiblePartsError
from beni.interfaces import FusionContext, LLMSpec, VisualSpec, WindowSpec
from beni.nn.plan import plan_cross
from beni.types import Windows
from beni_plugins.fusions.sva import Aggregation, AggregationConfig, Aggregator
from tests.model.small import CONVERSATIONS, INLINE, SVA, make

SPEC = VisualSpec(16, WindowSpec((1, 4), 8))


@pytest.mark.parametrize(
    ("config", "layers", "behind"),
    [
        (AggregationConfig(), 4, [0, 1, 2]),
        (AggregationConfig(start=1, stride=2), 6, [1, 3]),
        (AggregationConfig(stride=3, count=10), 32, list(range(0, 28, 3))),  # Cambrian-1 8B
        (AggregationConfig(stride=4, count=10), 40, list(range(0, 37, 4))),  # 13B
    ],
)
def test_behind_which_layers(config: AggregationConfig, layers: int, behind: list[int]) -> None:
    assert list(config.behind(layers)) == behind
    fusion = Aggregation(config, LLMSpec(16, layers), VisualSpec(16, WindowSpec((1,), 8)))
    assert list(fusion.inserts()) == behind and not any(insert.before for insert in fusion.inserts().values())


def test_only_visual_tokens_change() -> None:
    torch.manual_seed(0)
    block = Aggregator(AggregationConfig(heads=2), LLMSpec(16, 4), SPEC)
    at_V = torch.tensor([1, 2, 8])
    windows = Windows(
        (torch.randn(3, 1, 8), torch.randn(3, 4, 8)),
        (torch.ones(3, 1, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)),
        torch.randn(3, 8),
    )
    plan = plan_cross([(0, 5), (5, 10)], torch.zeros(10, 2, dtype=torch.long).numpy())
    x_BTD = torch.randn(2, 5, 16)
    out_BTD = block(x_BTD, FusionContext(torch.zeros(1, 16), plan, at_V, windows))
    changed = (out_BTD != x_BTD).any(-1).flatten()
    assert changed.nonzero().flatten().tolist() == at_V.tolist()
    one = block.sampler(x_BTD.flatten(0, 1)[at_V[2:]], windows.at(torch.tensor([2])))
    torch.testing.assert_close(out_BTD[1, 3], one[0])


def test_every_aggregator_is_trained_on_0_1_and_3_images() -> None:
    """Two encoders of different grids; a generation in between leaves nothing behind that training would use."""
    built = make("sva")
    grids = {key: spec.grid(spec.size) for key, spec in built.composer.encoders.items()}
    assert len(set(grids.values())) == 2 and len(built.model.fusion.inserts()) == 2
    images = [len(sample.images) for sample in CONVERSATIONS]
    assert {0, 1, 3} <= set(images)
    row = pack([[built.composer.compose(sample)] for sample in CONVERSATIONS], built.composer)
    built.model(packed=row).loss.backward()
    parts = [*built.model.connector.samplers, *(insert.block for insert in built.model.fusion.inserts().values())]  # type: ignore[misc]
    for part in parts:
        silent = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.any()]
        assert not silent


def test_a_model_without_an_order_of_encoders_has_theirs() -> None:
    """As saved before there was one."""
    config = make("sva").model.config
    assert list(config.encoder_specs()) == ["main", "coarse"]
    config.encoder_order = []
    assert list(config.encoder_specs()) == list(config.encoders)


def test_refusals() -> None:
    with pytest.raises(IncompatiblePartsError, match=r"fusion 'sva' reads .* connector 'mlp' .* --connector sva"):
        make("inline", fusion={"name": "sva"}, connector=INLINE["connector"])
    with pytest.raises(ConfigError, match=r"no place behind layer 2 of 3 .*--fusion\.start"):
        make("sva", fusion=SVA["fusion"] | {"start": 2})
    with pytest.raises(ConfigError, match=r"--fusion\.heads 3 .* 16 channels"):
        make("sva", fusion=SVA["fusion"] | {"heads": 3})
    with pytest.raises(ConfigError, match="stride"):
        AggregationConfig(stride=0)
