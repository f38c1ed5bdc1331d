"""Concatenation equals MiniGPT-v2's strips and the pixel shuffles of nanoVLM and Idefics3."""

import pickle

import pytest
import torch
from einops import rearrange
from transformers import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from beni.errors import ConfigError, GridError, IncompatiblePartsError
from beni.types import Features, Grid
from beni_plugins.connectors.concat import Concat, ConcatConfig
from beni_plugins.views.single import Single, SingleConfig
from tests.golden.reference import assert_numbers, det, golden, load_reference
from tests.plugins.specs import spec


def on_grid(tokens_CND: torch.Tensor, grid: Grid) -> Features:
    return Features(tokens_CND.flatten(0, 1), (grid,) * len(tokens_CND))


@pytest.mark.parametrize(
    ("file", "order", "bias"), [("minigpt4v2_concat", "raster4", True), ("pixel_shuffle", "square2", False)]
)
def test_reference_file(file: str, order: str, bias: bool) -> None:
    tensors = golden(file)
    connector = Concat(ConcatConfig(order=order, bias=bias), {"main": spec(12)}, 32)
    load_reference(connector, tensors["w"], lambda name: name if "proj.weight" in tensors["w"] else name[5:])
    out = connector.project(on_grid(tensors["in"]["tokens"], Grid(4, 4)))
    torch.testing.assert_close(out, tensors["out"]["tokens"].flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_minigpts_numbers() -> None:
    connector = Concat(ConcatConfig(order="raster4"), {"main": spec(6)}, 8).double()
    connector.proj.bias.data.copy_(det((8,), 1, 1.0))
    connector.proj.weight.data.copy_(det((8, 24), 2, 1.0))
    assert_numbers(
        connector.project(on_grid(det((1, 17, 6), 51)[:, 1:], Grid(4, 4))),
        3.8701528498,
        122.8611226790,
        [3.1217465103, 5.1739158014, -5.7730089324, 0.9661572734],
        [0.5941115267, 4.9426931048],
    )


@pytest.mark.parametrize("side", [2, 4])
def test_equals_idefics3(side: int) -> None:
    config = Idefics3Config(
        scale_factor=side, vision_config={"hidden_size": 12}, text_config={"model_type": "llama", "hidden_size": 32}
    )
    torch.manual_seed(0)
    theirs = Idefics3Connector(config)
    ours = Concat(ConcatConfig(order=f"square{side}", bias=False), {"main": spec(12)}, 32)
    ours.load_state_dict({"proj.weight": theirs.modality_projection.proj.weight})
    x_CND = torch.randn(3, 64, 12)
    torch.testing.assert_close(ours.project(on_grid(x_CND, Grid(8, 8))), theirs(x_CND).flatten(0, 1))


@pytest.mark.parametrize("order", ["square2", "raster2", "raster4", "square1"])
def test_a_token_is_made_of_neighbours_and_crops_do_not_mix(order: str) -> None:
    """Every input token's gradient reaches the one output token whose block covers it, on grids of several shapes."""
    config = ConcatConfig(order=order)
    connector = Concat(config, {"main": spec(3)}, 2)
    grids = (Grid(4, 8), Grid(2, 4), Grid(2, 4), Grid(8, 4))
    x_ND = torch.randn(sum(grid.count for grid in grids), 3, requires_grad=True)
    out = connector.project(Features(x_ND, grids))
    rows, cols = config.block
    expected, first = [], 0
    for grid in grids:
        ids = torch.arange(first, first + grid.count).view(tuple(grid))
        expected += [set(block.tolist()) for block in rearrange(ids, "(h p) (w q) -> (h w) (p q)", p=rows, q=cols)]
        first += grid.count
    assert len(out) == len(expected) == sum(config.out_grid(grid).count for grid in grids)
    for number, tokens in enumerate(expected):
        [gradient] = torch.autograd.grad(out[number].sum(), x_ND, retain_graph=True)
        assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == tokens


@pytest.mark.parametrize("order", ["raster", "square0", "square", "cube2", "raster4x", ""])
def test_refuses_other_orders(order: str) -> None:
    with pytest.raises(ConfigError, match=r"neither squareN nor rasterN"):
        ConcatConfig(order=order)


@pytest.mark.parametrize(
    ("order", "grid", "nearest"),
    [
        ("square2", Grid(5, 7), Grid(4, 8)),
        ("square2", Grid(1, 1), Grid(2, 2)),
        ("raster4", Grid(14, 14), Grid(16, 16)),
        ("raster4", Grid(3, 9), Grid(3, 8)),
    ],
)
def test_a_grid_that_does_not_divide_names_one_that_would(order: str, grid: Grid, nearest: Grid) -> None:
    config = ConcatConfig(order=order)
    with pytest.raises(GridError, match=rf"'{order}'.*does not divide a grid of {grid}; {nearest} would do") as caught:
        config.out_grid(grid)
    assert caught.value.nearest == nearest and config.out_grid(nearest).count
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(GridError(str(caught.value))) == str(caught.value)


def test_an_encoder_whose_grid_does_not_divide_is_told_its_input() -> None:
    with pytest.raises(
        IncompatiblePartsError, match=r"grid of 7x7; 8x8 would do \(an input of 64x64 pixels: --encoder\.size 64\)"
    ):
        Concat.check(ConcatConfig(), Single(SingleConfig()), {"main": spec(6, side=56, stride=8)})
    Concat.check(ConcatConfig(), Single(SingleConfig()), {"main": spec(6, side=64, stride=8)})
