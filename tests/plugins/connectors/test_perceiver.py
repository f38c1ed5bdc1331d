"""Both Perceiver resamplers equal their references; latents stay distinct; crops do not mix."""

from typing import Any

import pytest
import torch

from beni.errors import ConfigError
from beni_plugins.connectors.perceiver import Perceiver, PerceiverConfig
from tests.golden.reference import assert_numbers, det, fill, golden, load_reference
from tests.plugins.specs import features, spec

IDEFICS2_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def reference_name(name: str) -> str:
    """Idefics2's attention is a module of its own; everything else is named as in the references."""
    parts = name.split(".")
    return (
        ".".join([*parts[:-2], "self_attn", *parts[-2:]]) if parts[-2:-1] and parts[-2] in IDEFICS2_ATTENTION else name
    )


def perceiver(width: int, out: int = 0, **options: Any) -> Perceiver:
    torch.manual_seed(0)
    return Perceiver(PerceiverConfig(**options), {"main": spec(width)}, out or width)


def test_flamingo_numbers() -> None:
    connector = perceiver(8, num_latents=3, depth=2, heads=2, head_width=4, ff_multiple=2)
    fill(connector.resampler)
    media = det((2, 2, 1, 5, 8), 52).flatten(0, 2)
    assert_numbers(
        connector.double().project(features(*media)),
        17.9861406646,
        85.2783141647,
        [2.4057917932, 0.6416643145, -0.4794094840, -0.0612689278],
        [-1.5977502965, -1.3223095382],
    )


def test_flamingo_file() -> None:
    file = golden("flamingo_perceiver")
    connector = perceiver(32, num_latents=5, depth=2, heads=4, head_width=8)
    load_reference(connector.resampler, file["w"])
    out = connector.project(features(*file["in"]["x"].flatten(0, 2)))
    torch.testing.assert_close(out, file["out"]["latents"].flatten(0, 2), rtol=1e-4, atol=1e-5)


def test_idefics2_numbers() -> None:
    connector = perceiver(16, variant="idefics2", num_latents=3, depth=2, heads=4, head_width=6, kv_heads=2)
    fill(connector.resampler, reference_name)
    assert_numbers(
        connector.resampler(det((2, 5, 16), 60)),
        2.7289881683,
        84.7600863614,
        [0.9271303006, -0.9827852425, 0.2160680952, 0.8644290435],
        [0.0075535793, -1.5759488822],
        rtol=1e-5,  # the reference normalises in float32
    )


def test_idefics2_file() -> None:
    """The reference pads crops and masks the padding; here crops have their own lengths, which must be the same."""
    file = golden("idefics2_perceiver")
    connector = perceiver(32, variant="idefics2", num_latents=6, depth=2, heads=4, head_width=8, kv_heads=2)
    load_reference(connector.resampler, file["w"], reference_name)
    real = file["in"]["attention_mask"].bool()
    assert not real.all()
    connector.before = torch.nn.Identity()  # the file is the resampler alone
    crops = [crop[mask] for crop, mask in zip(file["in"]["context"], real, strict=True)]
    torch.testing.assert_close(
        connector.project(features(*crops)), file["out"]["latents"].flatten(0, 1), rtol=1e-4, atol=1e-5
    )


def test_idefics2_projects_before_it_resamples() -> None:
    connector = perceiver(6, 16, variant="idefics2", num_latents=3, depth=1, heads=4, head_width=6, kv_heads=2)
    x_CND = torch.randn(2, 5, 6)
    gate, up, down = (getattr(connector.before, f"{name}_proj").weight for name in ("gate", "up", "down"))
    projected = (torch.nn.functional.silu(x_CND @ gate.T) * (x_CND @ up.T)) @ down.T
    expected = connector.resampler(projected).flatten(0, 1)
    torch.testing.assert_close(connector.project(features(*x_CND)), expected)


@pytest.mark.parametrize("variant", ["flamingo", "idefics2"])
def test_latents_start_and_stay_distinct(variant: str) -> None:
    connector = perceiver(16, variant=variant, num_latents=4, depth=2, heads=2, head_width=8, kv_heads=1)
    optimizer = torch.optim.SGD(connector.parameters(), lr=0.05)
    x_ND, target_VD = torch.randn(9, 16), torch.randn(4, 16)
    losses = []
    for _ in range(5):
        loss = (connector.project(features(x_ND)) - target_VD).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        gradient = connector.resampler.latents.grad
        assert isinstance(gradient, torch.Tensor)
        assert torch.pdist(gradient).min() > 1e-6, "equal gradients keep equal latents equal"
        assert torch.pdist(connector.resampler.latents.detach()).min() > 0.01  # type: ignore[operator]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("variant", ["flamingo", "idefics2"])
def test_crops_of_all_lengths_are_read_one_by_one(variant: str) -> None:
    connector = perceiver(16, 24, variant=variant, num_latents=3, depth=1, heads=2, head_width=8, kv_heads=1)
    crops = [torch.randn(length, 16) for length in (4, 4, 7, 4)]
    together = connector.project(features(*crops))
    one_by_one = torch.cat([connector.project(features(crop)) for crop in crops])
    assert together.shape == (12, 24)
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-6)


def test_refuses_heads_that_cannot_share_keys() -> None:
    with pytest.raises(ConfigError, match=r"kv-heads.*3.*divide.*8"):
        PerceiverConfig(variant="idefics2", heads=8, kv_heads=3)


@pytest.mark.parametrize("variant", ["flamingo", "idefics2"])
def test_a_fresh_resampler_says_more_of_the_image_than_of_itself(variant: str) -> None:
    connector = perceiver(32, variant=variant, num_latents=6)
    out_CQD = connector.project(features(*torch.randn(64, 5, 32))).view(64, 6, 32).detach()
    between_images, between_latents = out_CQD.var(0).mean(), out_CQD.mean(0).var(0).mean()
    assert between_images > between_latents
