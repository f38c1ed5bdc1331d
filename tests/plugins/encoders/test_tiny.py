"""The encoder that trains from scratch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from beni.errors import ConfigError
from beni_plugins.encoders.tiny import TinyEncoder, TinyEncoderConfig
from tests.plugins.encoders.contract import assert_keeps_promises

SMALL: dict[str, Any] = {
    "size": 32,
    "stem": (8, 16),
    "blocks": (1, 0),
    "width": 24,
    "layers": 1,
    "heads": 3,
    "merge": 2,
}


DEEP = SMALL | {"layers": 2, "outputs": (0, -2, 2)}


@pytest.mark.parametrize("options", [{}, SMALL, SMALL | {"merge": 1}, SMALL | {"layers": 0}, DEEP])
def test_keeps_what_it_describes(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = TinyEncoderConfig(**options)
    encoder = TinyEncoder(config, TinyEncoder.describe(config))
    assert encoder.load_pretrained() is None
    assert_keeps_promises(encoder)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (SMALL | {"size": 60}, r"60 is not divisible by 8; 64 is"),
        (SMALL | {"heads": 5}, "not divisible by heads 5"),
        (SMALL | {"blocks": (1,)}, "2 numbers of blocks"),
        (SMALL | {"outputs": (0,)}, r"must have the last block's, -1"),
        (SMALL | {"outputs": (-3, -1)}, "of the 2 hidden states"),
        (SMALL | {"outputs": ()}, "outputs"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        TinyEncoderConfig(**options)


def test_starts_from_an_encoder_that_was_trained(tmp_path: Path) -> None:
    """Out of the file of a whole model, under whatever key it stood there."""
    encoders = [TinyEncoder(TinyEncoderConfig(**SMALL), TinyEncoder.describe(TinyEncoderConfig(**SMALL)))]
    state = {f"encoders.eye.{name}": tensor for name, tensor in encoders[0].state_dict().items()}
    save_file(state | {"llm.model.layers.0.norm1.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    config = TinyEncoderConfig(**SMALL, weights=str(tmp_path))
    second = TinyEncoder(config, TinyEncoder.describe(config))
    origin = second.load_pretrained()
    assert origin is not None and origin.origin == str(tmp_path)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in encoders[0].state_dict().items())
    other = TinyEncoderConfig(**SMALL | {"width": 48}, weights=str(tmp_path))
    with pytest.raises(ConfigError, match=r"do not fit TinyEncoder: .* first 'encoders.eye.position_ND'"):
        TinyEncoder(other, TinyEncoder.describe(other)).load_pretrained()


def test_outputs_are_hidden_states_side_by_side() -> None:
    torch.manual_seed(0)
    encoder = TinyEncoder(config := TinyEncoderConfig(**DEEP), TinyEncoder.describe(TinyEncoderConfig(**DEEP))).eval()
    assert (encoder.spec.levels, encoder.spec.width) == (3, 3 * config.width)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        levels = encoder(pixels).split(3)
        for index, level in zip((0, 1, 2), levels, strict=True):
            alone = TinyEncoderConfig(**DEEP | {"outputs": (-1,)})
            single = TinyEncoder(alone, TinyEncoder.describe(alone)).eval()
            single.load_state_dict(encoder.state_dict())
            single.layers = encoder.layers[:index]
            torch.testing.assert_close(single(pixels).tokens_ND, level.tokens_ND)


def test_merged_tokens_hold_neighbours() -> None:
    """A token's features change most with the pixels of its own square."""
    config = TinyEncoderConfig(**SMALL | {"layers": 0, "blocks": (0, 0)})
    torch.manual_seed(0)
    encoder = TinyEncoder(config, TinyEncoder.describe(config)).eval()
    grid = encoder.spec.grid(encoder.spec.size)
    pixels = torch.zeros(1, 3, 32, 32)
    lit = pixels.clone()
    lit[..., 20, 12] = 5.0  # row 2, column 1 of squares of 8 pixels
    with torch.no_grad():
        change = (encoder(lit).tokens_ND - encoder(pixels).tokens_ND).norm(dim=1).view(grid)
    assert divmod(int(change.argmax()), grid.cols) == (2, 1)
