"""The MLP projector equals LLaVA's."""

import pytest
import torch

from beni.errors import ConfigError
from beni_plugins.connectors.mlp import Mlp, MlpConfig
from tests.golden.reference import assert_numbers, det, fill, golden, load_reference
from tests.plugins.specs import features, spec

NUMBERS = {
    "linear": (
        -5.0317621376,
        86.5249182812,
        [2.1528230832, 1.0790160995, -1.0439883753, 0.7855263674],
        [0.5129345129, 0.1719211618],
    ),
    "mlp2x_gelu": (
        -3.1271143186,
        163.7938479980,
        [-2.6307836581, -3.5776749265, -2.8972158002, -0.8997147326],
        [3.3387459529, 2.0684058102],
    ),
    "mlp3x_gelu": (
        -7.0441842407,
        309.5216768901,
        [-4.9915379799, -7.1529221082, -6.1218262971, -2.3640562169],
        [6.7839299117, 4.6879747195],
    ),
}


def reference_name(name: str) -> str:
    return name.removeprefix("layers.")


@pytest.mark.parametrize("kind", NUMBERS)
def test_reference_numbers(kind: str) -> None:
    connector = fill(Mlp(MlpConfig(kind=kind), {"main": spec(6)}, 8), reference_name)
    assert_numbers(connector.project(features(*det((2, 5, 6), 50))), *NUMBERS[kind])


def test_reference_file() -> None:
    file = golden("llava_mlp2x_gelu")
    connector = Mlp(MlpConfig(), {"main": spec(12)}, 32)
    load_reference(connector, file["w"], reference_name)
    out = connector.project(features(*file["in"]["tokens"]))
    torch.testing.assert_close(out, file["out"]["tokens"].flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_residual_blocks_add_to_their_normed_input() -> None:
    """Written out: a LayerNorm's output, and two linear layers of it on top."""
    torch.manual_seed(0)
    connector = Mlp(MlpConfig(kind="mlp2x_res2x_gelu"), {"main": spec(6)}, 8)
    plain, blocks = connector.layers[:3], connector.layers[3:]
    assert len(blocks) == connector.config.residual_blocks == 2
    x = torch.randn(5, 6)
    expected = plain(x)
    for block in blocks:
        torch.nn.init.normal_(block.norm.weight)
        normed = (expected - expected.mean(1, keepdim=True)) / (
            expected.var(1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        normed = normed * block.norm.weight + block.norm.bias
        first, _, second = block.layers
        hidden = normed @ first.weight.T + first.bias
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        expected = normed + hidden @ second.weight.T + second.bias
    torch.testing.assert_close(connector.project(features(x)), expected, rtol=1e-5, atol=1e-5)


def test_every_number_of_layers_keeps_the_grid() -> None:
    for layers in (1, 2, 5):
        connector = Mlp(MlpConfig(kind=f"mlp{layers}x_gelu"), {"main": spec(6)}, 8)
        assert sum(isinstance(module, torch.nn.Linear) for module in connector.modules()) == layers
        assert connector.config.out_grid(spec(6).grid(spec(6).size)) == (4, 4)


@pytest.mark.parametrize("kind", ["mlp0x_gelu", "mlp2x_relu", "mlp2x_res_gelu", "identity", ""])
def test_refuses_other_kinds(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"none of linear, mlpNx_gelu and mlpNx_resMx_gelu"):
        MlpConfig(kind=kind)
