"""Layers side by side, and parameters that they leave unused."""

import torch
import torch.nn.functional as F
from torch import nn

from beni.nn.levels import Level, join
from beni.nn.unused import drop_unused_children, unused_parameters
from beni.types import Grid


def test_tokens_and_maps_are_the_same_thing() -> None:
    tokens = torch.randn(2, 3 + 4 * 5, 6)
    level = Level.of_tokens(tokens, Grid(4, 5))
    features = join([level])
    assert level.grid == Grid(4, 5) and features.grids == (Grid(4, 5),) * 2
    assert torch.equal(features.tokens_ND, tokens[:, 3:].flatten(0, 1))
    assert features.prefix_CPD is not None and torch.equal(features.prefix_CPD, tokens[:, :3])
    assert join([Level.of_tokens(tokens[:, 3:], Grid(4, 5))]).prefix_CPD is None


def test_coarser_maps_are_resized_to_the_finest() -> None:
    """In the order given; bilinear as in Cambrian-1, computed in fp32 and given back in the maps' precision."""
    coarse, fine = torch.randn(2, 3, 2, 3).bfloat16(), torch.randn(2, 5, 4, 7).bfloat16()
    features = join([Level(coarse), Level(fine)])
    resized = F.interpolate(coarse.float(), (4, 7), mode="bilinear", align_corners=False).bfloat16()
    assert features.grids == (Grid(4, 7),) * 2 and features.tokens_ND.dtype == torch.bfloat16
    assert torch.equal(features.tokens_ND, torch.cat([resized, fine], dim=1).permute(0, 2, 3, 1).flatten(0, 2))


def test_only_children_that_are_wholly_unused_are_dropped() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    unused = unused_parameters(network, network[1][0](network[0](torch.ones(1, 2))))
    assert drop_unused_children(network, unused) == ["1.1.bias", "1.1.weight"]
    assert [type(child) for child in network] == [nn.Linear, nn.Sequential, nn.Identity]
