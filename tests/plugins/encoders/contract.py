"""What every encoder promises."""

from pathlib import Path

import torch
from torch import Tensor

from beni.interfaces import VisionEncoder
from beni.nn.norms import hold_batch_norms
from beni.types import EncoderSpec, Features


def crops(spec: EncoderSpec, count: int = 2) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(count, 3, spec.size.height, spec.size.width)


def assert_keeps_promises(encoder: VisionEncoder) -> Features:
    """Features have the described grid, width and prefix; crops do not mix; every parameter gets a gradient."""
    spec = encoder.spec
    pixels = crops(spec)
    hold_batch_norms(encoder)  # as the model does
    encoder.train()
    features = encoder(pixels)
    grid = spec.grid(spec.size)
    assert features.grids == (grid, grid)
    assert features.tokens_ND.shape == (2 * grid.count, spec.width)
    if spec.prefix:
        assert features.prefix_CPD is not None and features.prefix_CPD.shape == (2, spec.prefix, spec.width)
    else:
        assert features.prefix_CPD is None
    features.tokens_ND.square().sum().backward()
    missing = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not missing, "whoever trains the encoder expects a gradient for each of its parameters"
    if blocks := encoder.blocks():
        assert len({id(block) for block in blocks}) == len(blocks)

    encoder.eval().zero_grad()
    with torch.no_grad():
        together = encoder(pixels).tokens_ND
        alone = torch.cat([encoder(pixel[None]).tokens_ND for pixel in pixels])
        assert together.std() > 0
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
        torch.testing.assert_close(features.tokens_ND, together, msg="training and evaluation see different features")
        assert not torch.equal(encoder(pixels + 1).tokens_ND, together)
    return features


def text_of(folder: Path) -> str:
    """Everything readable in a saved model."""
    return "".join(file.read_text(encoding="utf-8") for file in folder.iterdir() if file.suffix in (".json", ".jinja"))
