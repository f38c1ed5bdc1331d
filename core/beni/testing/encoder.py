"""Checks of encoders: features are as described, crops do not mix, and every parameter can be trained."""

import json
from copy import deepcopy
from typing import ClassVar

import torch
from torch import Tensor

from beni.interfaces import VisionEncoder, load
from beni.model.config import spec_from_dict, spec_to_dict
from beni.nn.norms import hold_batch_norms
from beni.testing.model import ModelConformance
from beni.testing.suite import require
from beni.types import EncoderSpec, Features

BF16_ERROR = 0.1
"""Of the norm of the features: bf16 has 8 bits, and encoders are deep."""


class EncoderConformance(ModelConformance):
    """Subclass it and name your encoder: `part = "mine"`."""

    kind: ClassVar[str] = "encoder"

    def encoder(self) -> VisionEncoder:
        """A fresh one, as a model holds it, with its published weights if its options name any."""
        torch.manual_seed(0)
        config = self.chosen().config
        cls = load("encoder", self.chosen())
        encoder: VisionEncoder = cls(config, cls.describe(config))  # type: ignore[attr-defined]
        encoder.load_pretrained()
        hold_batch_norms(encoder)
        return encoder

    def test_the_description_is_plain_and_repeatable(self) -> None:
        cls, config = load("encoder", self.chosen()), self.chosen().config
        spec: EncoderSpec = cls.describe(config)  # type: ignore[attr-defined]
        require(cls.describe(config) == spec, "`describe` says something else the second time")  # type: ignore[attr-defined]
        again = spec_from_dict(json.loads(json.dumps(spec_to_dict(spec))))
        require(again == spec, f"the description changes on its way through config.json: {spec} came back as {again}")

    def test_features_are_as_described(self) -> None:
        features_as_described(self.encoder())

    def test_gradients_reach_every_parameter(self) -> None:
        gradients_everywhere(self.encoder())

    def test_crops_do_not_mix(self) -> None:
        crops_do_not_mix(self.encoder())

    def test_bf16_is_near_fp32(self) -> None:
        """Pixels stay in fp32: an encoder casts them to what its weights are."""
        encoder = self.encoder().eval()
        pixels = crops(encoder.spec)
        with torch.no_grad():
            wanted = encoder(pixels).tokens_ND
            found = deepcopy(encoder).bfloat16()(pixels).tokens_ND
        require(
            found.dtype is torch.bfloat16,
            f"with bf16 weights the features are {found.dtype}: cast the pixels to the dtype of the weights",
        )
        error = float((found.float() - wanted).norm() / wanted.norm().clamp(min=1e-30))
        require(error < BF16_ERROR, f"bf16 is {error:.0%} away from fp32: compute norms and softmax in fp32")


def crops(spec: EncoderSpec, count: int = 2) -> Tensor:
    """Pixels of noise in an encoder's own size."""
    torch.manual_seed(0)
    return torch.randn(count, 3, spec.size.height, spec.size.width)


def assert_keeps_promises(encoder: VisionEncoder) -> Features:
    """All that an encoder promises: features as described, a gradient for every parameter, crops that do not mix.

    Raises:
        AssertionError: says which promise is broken.
    """
    hold_batch_norms(encoder)  # as the model does
    features = features_as_described(encoder)
    gradients_everywhere(encoder)
    crops_do_not_mix(encoder)
    return features


def features_as_described(encoder: VisionEncoder) -> Features:
    """Features of two crops, of the described grid, width and prefix."""
    spec = encoder.spec
    features = encoder.train()(crops(spec))
    grid = spec.grid(spec.size)
    require(features.grids == (grid, grid), f"`describe` says {grid}, the features of two crops have {features.grids}")
    shape, wanted = tuple(features.tokens_ND.shape), (2 * grid.count, spec.width)
    require(shape == wanted, f"two crops have features of shape {shape}, `describe` says {wanted}")
    found = None if features.prefix_CPD is None else tuple(features.prefix_CPD.shape)
    prefix = (2, spec.prefix, spec.width) if spec.prefix else None
    require(found == prefix, f"two crops have a prefix of shape {found}, `describe` says {prefix}")
    require(
        spec.levels >= 1 and spec.width % spec.levels == 0,
        f"`describe` says {spec.levels} layers of equal width in {spec.width} channels",
    )
    blocks = encoder.blocks()
    require(len({id(block) for block in blocks}) == len(blocks), "`blocks()` names a module twice")
    return features


def gradients_everywhere(encoder: VisionEncoder) -> None:
    """Every trainable parameter gets a gradient, be it zero."""
    encoder.train().zero_grad()
    encoder(crops(encoder.spec)).tokens_ND.square().sum().backward()
    missing = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    encoder.zero_grad()
    require(
        not missing,
        f"{', '.join(missing[:3])} get no gradient: whoever trains the encoder expects one for each of its parameters; "
        f"give unused ones zeros (beni.nn.unused)",
    )


def crops_do_not_mix(encoder: VisionEncoder) -> None:
    """A crop's features are the same alone, beside others and in training, and depend on its pixels."""
    pixels = crops(encoder.spec)
    with torch.no_grad():
        trained = encoder.train()(pixels).tokens_ND
        encoder.eval()
        together = encoder(pixels).tokens_ND
        alone = torch.cat([encoder(pixel[None]).tokens_ND for pixel in pixels])
        moved = encoder(pixels + 1).tokens_ND
    require(bool(together.isfinite().all()) and bool(together.std() > 0), "features are all the same number")
    require(
        torch.allclose(together, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max())),
        "features of a crop depend on the other crops of the batch",
    )
    require(
        torch.allclose(trained, together, rtol=1e-4, atol=1e-4 * float(together.abs().max())),
        "training and evaluation see different features: leave out dropout and batch statistics",
    )
    require(not torch.equal(moved, together), "features do not depend on the pixels")
