"""The C-Abstractor keeps places: what lies in a corner of a crop becomes tokens of that corner."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beni.errors import ConfigError, GridError
from beni.types import Features, Grid
from beni_plugins.connectors.cabstractor import CAbstractor, CAbstractorConfig
from tests.plugins.specs import spec


def connector(**options: int) -> CAbstractor:
    torch.manual_seed(0)
    return CAbstractor(CAbstractorConfig(width=8, **options), {"main": spec(6)}, 12).eval()


@pytest.mark.parametrize("grid", [Grid(8, 8), Grid(4, 12), Grid(9, 5)])
def test_a_corner_stays_in_its_corner(grid: Grid) -> None:
    part, x_ND = connector(side=4), torch.randn(2 * grid.count, 6)
    changed = x_ND.clone()
    changed[0] += 3.0  # the first token of the first crop
    with torch.no_grad():
        before, after = (part.project(Features(x, (grid, grid))).view(2, 4, 4, 12) for x in (x_ND, changed))
    change = (after - before).norm(dim=-1)
    assert not change[1].any(), "crops do not mix"
    most = divmod(int(change[0].argmax()), 4)
    if grid.rows % 4 == grid.cols % 4 == 0:
        assert most == (0, 0)
    else:
        assert max(most) <= 1, "windows overlap where the grid does not divide"
    assert change[0, 0, 0] > 3 * change[0, 3, 3], "squeeze-and-excitation alone reaches the other corner"


def test_blocks_before_and_behind_the_pooling() -> None:
    """With the last norm of every block at zero only the shortcuts are left: a convolution of 1x1 with a norm where the
    width changes, SiLU behind every block, the mean over each window, and the linear layers."""
    part = connector(side=2, depth=2)
    blocks = [block for stage in (part.net[0], part.net[2]) for block in stage.children()]
    assert len(blocks) == 4
    for block in blocks:
        nn.init.zeros_(block.conv3.bn.weight)
        nn.init.zeros_(block.conv3.bn.bias)
    x_ND = torch.randn(24, 6)
    shortcut = blocks[0].downsample
    widened_ND = F.layer_norm(
        x_ND @ shortcut.conv.weight[:, :, 0, 0].T, (8,), shortcut.bn.weight, shortcut.bn.bias, shortcut.bn.eps
    )
    map_RSD = F.silu(F.silu(widened_ND)).view(4, 6, 8)
    pooled_VD = torch.stack([map_RSD[r : r + 2, s : s + 3].mean((0, 1)) for r in (0, 2) for s in (0, 3)])
    first, _, second = part.readout
    expected = second(F.silu(first(F.silu(F.silu(pooled_VD)))))
    torch.testing.assert_close(part.project(Features(x_ND, (Grid(4, 6),))), expected, rtol=1e-4, atol=1e-5)
    assert [type(layer).__name__ for layer in part.readout] == ["Linear", "SiLU", "Linear"]
    assert part.config.out_grid(Grid(7, 9)) == Grid(2, 2)


def test_refusals() -> None:
    with pytest.raises(
        GridError,
        match=r"pools to 4x4 .* a grid of 3x8 has; 4x8 would do, .* --connector\.side",
    ):
        CAbstractorConfig().out_grid(Grid(3, 8))
    with pytest.raises(ConfigError, match=r"--connector\.mlp-depth"):
        CAbstractorConfig(mlp_depth=0)
