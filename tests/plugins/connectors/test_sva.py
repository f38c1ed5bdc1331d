"""The spatial vision aggregator equals Cambrian's, from the encoders' maps on."""

from typing import Any

import pytest
import torch
from torch import nn

from beni.errors import ConfigError, IncompatiblePartsError
from beni.types import EncoderSpec, Features, Grid, Size
from beni_plugins.connectors.sva import Sva, SvaConfig
from beni_plugins.views.single import Single, SingleConfig
from beni_plugins.views.split import Split, SplitConfig
from tests.golden.reference import assert_numbers, det, fill
from tests.plugins.specs import spec

PAD = Single(SingleConfig(fit="pad"))
TWO = {"fine": spec(6, side=32), "coarse": spec(4, side=32, stride=16)}


def features(encoders: dict[str, EncoderSpec], images: int, seed: int = 0) -> dict[str, Features]:
    generator = torch.Generator().manual_seed(seed)
    grids = {key: one.grid(one.size) for key, one in encoders.items()}
    return {
        key: Features(torch.randn(images * grid.count, encoders[key].width, generator=generator), (grid,) * images)
        for key, grid in grids.items()
    }


def test_reference_numbers() -> None:
    """Queries of 4x4 over maps of 4x4 and 8x8, one image 640x480 and one square, padded areas masked."""
    encoders = {"a": spec(16, side=32), "b": spec(16, side=64)}
    connector = Sva(SvaConfig(sides=(4,), width=16, heads=16, depth=1, unpad=False), encoders, 16)
    fill(connector.samplers[0])
    connector.double()
    connector.query_GC.data = det((1, 16), 72)
    connector.project_out = nn.Identity()  # type: ignore[assignment]
    connector.projectors = nn.ModuleDict({key: nn.Identity() for key in encoders})
    layouts = [PAD.layout(size, encoders) for size in (Size(640, 480), Size(300, 300))]
    maps = {
        "a": Features(det((2, 16, 16), 70).flatten(0, 1), (Grid(4, 4),) * 2),
        "b": Features(det((2, 64, 16), 71).flatten(0, 1), (Grid(8, 8),) * 2),
    }
    visual = connector(maps, layouts)
    assert_numbers(
        visual.tokens_VD,
        -61.3599138516,
        717.4373336225,
        [-2.8655819107, -0.8573327121, 2.6026896934, 2.3369697049],
        [-2.4122001355, -0.4862476995],
    )
    assert visual.windows is not None
    first, second = (v.view(2, 4, 4, -1).sum(-1) for v in visual.windows.visible)
    assert (first == 1).all(), "half a row of padding is no padding at 4x4"
    assert second[0, :, 0].tolist() == [2, 4, 4, 2] and (second[1] == 4).all()


@pytest.mark.parametrize(
    ("size", "kept"), [((640, 480), (18, 24)), ((480, 640), (24, 18)), ((300, 300), (24, 24)), ((1000, 300), (8, 24))]
)
def test_padding_is_left_out(size: tuple[int, int], kept: tuple[int, int]) -> None:
    """With a newline behind every row these are the reference's 450, 456, 600 and 200 positions."""
    encoders = {"main": spec(8, side=384, stride=16)}
    layout = PAD.layout(Size(*size), encoders)
    assert SvaConfig(sides=(24,)).shapes(layout, encoders) == (Grid(*kept),)
    assert SvaConfig(sides=(24,), unpad=False).counts(layout, encoders) == (576,)
    squashed = Single(SingleConfig()).layout(Size(*size), encoders)
    assert SvaConfig(sides=(24,)).counts(squashed, encoders) == (576,)


def test_each_query_reads_what_lies_under_it() -> None:
    """With one token changed in one encoder's map, only the query above it changes (and the image's summary does not,
    as it is that of the first encoder)."""
    torch.manual_seed(0)
    encoders = {"coarse": TWO["coarse"], "fine": TWO["fine"]}
    connector = Sva(SvaConfig(sides=(2,), width=8, heads=2), encoders, 12)
    layouts = [PAD.layout(Size(32, 32), encoders)] * 2
    one = features(encoders, 2)
    tokens = one["fine"].tokens_ND.clone()
    tokens[16 + 4 * 1 + 2] += 1  # second image, row 1, column 2 of 4x4: under the query at row 0, column 1
    other = one | {"fine": Features(tokens, one["fine"].grids)}
    changed = (connector(one, layouts).tokens_VD != connector(other, layouts).tokens_VD).any(1)
    assert changed.nonzero().flatten().tolist() == [4 + 1]


@pytest.mark.parametrize("variant", ["joint", "sep"])
def test_groups_and_resized_maps(variant: Any) -> None:
    """Two groups of queries, and a map of 3x3 whose sides they do not divide; every parameter gets a gradient."""
    torch.manual_seed(0)
    encoders = {"fine": TWO["fine"], "odd": spec(4, side=27, stride=9)}
    config = SvaConfig(variant=variant, sides=(2, 4), width=8, heads=2)
    assert config.resized(Grid(27, 27)) == Grid(28, 28) and SvaConfig(sides=(24,)).resized(Grid(27, 27)) == Grid(24, 24)
    connector = Sva(config, encoders, 12)
    layouts = [PAD.layout(Size(32, 20), encoders), PAD.layout(Size(32, 32), encoders)]
    visual = connector(features(encoders, 2), layouts)
    assert visual.counts == ((8,), (16,)) and visual.tokens_VD.shape == (24, 12)
    spec_ = config.windows(encoders)
    assert visual.windows is not None
    assert tuple(keys.shape[1:] for keys in visual.windows.keys) == tuple((n, spec_.width) for n in spec_.sizes)
    visual.tokens_VD.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in connector.parameters())


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"heads 3 do not divide --connector\.width 8"):
        SvaConfig(width=8, heads=3)
    with pytest.raises(ConfigError, match="sides"):
        SvaConfig(sides=())
    with pytest.raises(IncompatiblePartsError, match=r"this view makes 5.*--view single"):
        Sva.check(SvaConfig(), Split(SplitConfig()), TWO)
    Sva.check(SvaConfig(), PAD, TWO)
