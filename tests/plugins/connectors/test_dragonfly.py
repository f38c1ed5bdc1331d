"""Pooling and selection equal Dragonfly's; what is selected is known; counts are a function of the layout alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from beni.config import choose
from beni.errors import BeniError, GridError, IncompatiblePartsError, PluginError
from beni.interfaces import View
from beni.types import Box, Crop, EncoderSpec, Features, Grid, ImageLayout, Size, VisualTokens
from beni_plugins.connectors.dragonfly import Dragonfly, DragonflyConfig
from beni_plugins.connectors.mlp import Mlp
from beni_plugins.views.anyres import Anyres, AnyresConfig
from beni_plugins.views.pyramid import Pyramid, PyramidConfig
from beni_plugins.views.single import Single, SingleConfig
from beni_plugins.views.split import Split, SplitConfig
from tests.golden.reference import assert_numbers, det, golden
from tests.plugins.specs import spec

VERSION_1: dict[str, Any] = {"variant": "select", "top_k": 3, "regions": "block", "keep_prefix": True}
VERSION_2: dict[str, Any] = {"variant": "pool", "pool": 4, "keep_prefix": True}
HIGH_1 = ("4x6", "6x4", "8x3", "3x8", "12x2", "2x12")


def config(inner: str = "mlp", inner_options: dict[str, Any] | None = None, **options: Any) -> DragonflyConfig:
    inner_options = inner_options or ({"kind": "linear"} if inner == "mlp" else {})
    return DragonflyConfig(inner=choose("connector", inner, inner_options), **options)


def dragonfly(encoder: EncoderSpec, out: int, *args: Any, **options: Any) -> Dragonfly:
    torch.manual_seed(0)
    return Dragonfly(config(*args, **options), {"main": encoder}, out)


def unchanged(encoder: EncoderSpec, **options: Any) -> Dragonfly:
    """Around a connector that gives back what it is given."""
    connector = dragonfly(encoder, encoder.width, **options).double()
    [linear] = connector.inner.layers  # type: ignore[union-attr, misc]
    linear.weight.data.copy_(torch.eye(encoder.width))
    linear.bias.data.zero_()
    return connector


def layout(encoder: EncoderSpec, *levels: int) -> ImageLayout:
    """An image with crops of these levels, side by side in every level."""
    crops = []
    for level in sorted(set(levels)):
        count = levels.count(level)
        boxes = [Box(100 * n / count, 0, 100 * (n + 1) / count, 50) for n in range(count)]
        crops += [Crop(encoder.size, b, Box.of(encoder.size), level, (0, n)) for n, b in enumerate(boxes)]
    return ImageLayout(Size(100, 50), {"main": tuple(crops)})


def seen(x_CND: Tensor, grid: Grid, prefix: int = 0) -> Features:
    """Features of crops of one grid, prefix tokens in front."""
    head_CPD, tokens_CND = x_CND.split([prefix, grid.count], dim=1)
    return Features(tokens_CND.flatten(0, 1), (grid,) * len(x_CND), head_CPD if prefix else None)


def connect(connector: Dragonfly, features: Features, *layouts: ImageLayout) -> VisualTokens:
    return connector({"main": features}, layouts)


# ------------------------------------------------------------------------------------------------------- references


def test_pooling_numbers() -> None:
    encoder = replace(spec(4, side=336, stride=14), prefix=1)
    out = connect(unchanged(encoder, **VERSION_2), seen(det((2, 577, 4), 63), Grid(24, 24), 1), layout(encoder, 1, 1))
    assert out.counts == ((37, 37),)
    assert_numbers(
        out.tokens_VD,
        2.4641331754,
        5.5330895681,
        [0.1566143912, 0.4256848786, 0.4945491161, 0.3308191767],
        [-0.0107836012, -0.0010273176],
    )


def test_pooling_file() -> None:
    """The reference pools behind its linear layer."""
    file = golden("dragonfly_pool")
    encoder = replace(spec(12, side=64, stride=8), prefix=1)
    connector = dragonfly(encoder, 32, **VERSION_2)
    connector.load_state_dict({f"inner.layers.0.{name}": weight for name, weight in file["w"].items()})
    out = connect(connector, seen(file["in"]["crops"], Grid(8, 8), 1), layout(encoder, 0, 1, 1, 1, 1))
    torch.testing.assert_close(out.tokens_VD, file["out"]["tokens"], rtol=1e-4, atol=1e-5)
    assert out.counts == ((65, 5, 5, 5, 5),)


CHOSEN_1 = [0, 1, 5, 6, 10, 11, 12, 15, 16, 20, 21, 22]


@pytest.mark.parametrize("regions", ["block", "spatial"])  # in one row of crops they are the same
def test_selection_numbers(regions: str) -> None:
    encoder = EncoderSpec(Size(40, 8), 8, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    x_CND = det((29, 5, 4), 64)
    connector = unchanged(encoder, **VERSION_1 | {"regions": regions})
    out = connect(connector, seen(x_CND, Grid(1, 5)), layout(encoder, 0, *[1] * 4, *[2] * 24))
    assert torch.equal(out.tokens_VD, torch.cat([x_CND[:5], x_CND[5:][CHOSEN_1]]).flatten(0, 1))
    assert_numbers(
        out.tokens_VD,
        -0.5002038297,
        108.4105767235,
        [0.4994290258, 0.3665951600, 0.0613458623, -0.2727553531],
        [0.2311071806, -0.1088753658],
    )


def test_the_references_numbers_of_tokens() -> None:
    large, base = replace(spec(8, side=336, stride=14), prefix=1), replace(spec(8, side=224, stride=32), prefix=1)
    for size in (Size(500, 500), Size(2000, 500), Size(500, 2000), Size(1, 1)):
        two = Pyramid(PyramidConfig(factor=3)).layout(size, {"main": large})
        assert config(**VERSION_2).counts(two, {"main": large}) == (577, *[37] * 40)
        one = Pyramid(PyramidConfig(high=HIGH_1)).layout(size, {"main": base})
        for regions in ("block", "spatial"):
            assert config(**VERSION_1 | {"regions": regions}).counts(one, {"main": base}) == (50,) * 17
    assert 577 + 40 * 37 == 2057 and 17 * 50 == 850


# -------------------------------------------------------------------------------------------------------- selection


def marked(size: Size, encoder: EncoderSpec, options: dict[str, Any]) -> tuple[ImageLayout, Tensor, list[Grid]]:
    """A pyramid of an image whose crops have features of their own to be told by."""
    view = Pyramid(PyramidConfig(**options))
    found = view.layout(size, {"main": encoder})
    return found, torch.randn(len(found.crops["main"]), 4, encoder.width).double(), view.grids(size, encoder)


def test_the_crops_that_look_like_their_medium_crop_are_kept() -> None:
    """A medium crop is one direction; in its quarter of the image two high crops point that way, and more elsewhere."""
    encoder = spec(4, side=16)
    pyramid, x_CND, grids = marked(Size(64, 64), encoder, {"factor": 2})
    assert grids == [Grid(1, 1), Grid(2, 2), Grid(4, 4)]
    x_CND[1:5] = torch.eye(4)[:, None]
    x_CND[5:] = -torch.eye(4).sum(0)
    planted = {(0, 0): 0, (1, 1): 0, (0, 2): 1, (0, 3): 1, (2, 1): 2, (3, 1): 2, (2, 2): 3, (3, 3): 3}
    for (row, col), quarter in planted.items():
        x_CND[5 + 4 * row + col] = torch.eye(4)[quarter]
    x_CND[5 + 4 * 2 + 3] = 9 * torch.eye(4)[0] - torch.eye(4)[3]  # most like the first medium crop, but far from it
    out = connect(unchanged(encoder, variant="select", top_k=2), seen(x_CND, Grid(2, 2)), pyramid)
    kept = sorted(4 * row + col for row, col in planted)
    assert torch.equal(out.tokens_VD, torch.cat([x_CND[:5], x_CND[5:][kept]]).flatten(0, 1))
    assert out.counts == ((4,) * 13,)


def test_the_low_crop_may_be_what_is_looked_for() -> None:
    encoder = spec(4, side=16)
    pyramid, x_CND, _ = marked(Size(64, 64), encoder, {"factor": 2})
    similarity = torch.einsum("d,cd->c", x_CND[0].mean(0), x_CND[5:].mean(1)).view(2, 2, 2, 2)  # rows, then columns
    best = similarity.permute(0, 2, 1, 3).flatten(2).argmax(-1).flatten().tolist()
    kept = [8 * (q // 2) + 4 * (n // 2) + 2 * (q % 2) + n % 2 for q, n in enumerate(best)]
    out = connect(unchanged(encoder, variant="select", query="low"), seen(x_CND, Grid(2, 2)), pyramid)
    assert torch.equal(out.tokens_VD, torch.cat([x_CND[:5], x_CND[5:][sorted(kept)]]).flatten(0, 1))


def test_blocks_are_stripes_and_regions_are_places() -> None:
    pyramid, _, _ = marked(Size(64, 64), spec(4, side=16), {"factor": 2})
    crops = pyramid.crops["main"]
    assert config(regions="block").candidates(crops) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert config(regions="spatial").candidates(crops) == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("size", [Size(50, 100), Size(2000, 990), Size(7, 900), Size(333, 331)])
@pytest.mark.parametrize("options", [{"factor": 3}, {"high": HIGH_1}, {"medium": ("2x2",), "high": ("5x5",)}])
def test_every_high_crop_belongs_to_one_medium_crop(size: Size, options: dict[str, Any]) -> None:
    """Also where the grids do not fit into each other."""
    pyramid, _, grids = marked(size, spec(4, side=16), options)
    found = config().candidates(pyramid.crops["main"])
    assert sorted(n for region in found for n in region) == list(range(grids[2].count))


def test_equal_crops_are_taken_in_order() -> None:
    """An image without anything to see still has as many tokens as it was counted for."""
    encoder = spec(4, side=16)
    pyramid, x_CND, _ = marked(Size(1, 1), encoder, {"factor": 2})
    x_CND[:] = 1.0
    x_CND[5:] += torch.arange(16)[:, None, None] * torch.tensor([1.0, -1.0, 0.0, 0.0])  # not seen by the summaries
    out = connect(unchanged(encoder, variant="select", top_k=2), seen(x_CND, Grid(2, 2)), pyramid)
    assert torch.equal(out.tokens_VD[5 * 4 :: 4], x_CND[5:, 0][[0, 1, 2, 3, 8, 9, 10, 11]])


def test_only_what_is_kept_gets_a_gradient() -> None:
    encoder = spec(6, side=16)
    pyramid, x_CND, _ = marked(Size(64, 64), encoder, {"factor": 2})
    x_CND = x_CND.float().requires_grad_()
    connector = dragonfly(encoder, 5, variant="select", top_k=1)
    out = connect(connector, seen(x_CND, Grid(2, 2)), pyramid)
    out.tokens_VD.square().sum().backward()
    assert x_CND.grad is not None
    reached = x_CND.grad.flatten(1).abs().sum(1) > 0
    assert reached[:5].all() and int(reached[5:].sum()) == 4
    assert all(parameter.grad is not None for parameter in connector.parameters())


# ---------------------------------------------------------------------------------------------------- any inner one


@pytest.mark.parametrize("variant", ["pool", "select"])
@pytest.mark.parametrize("inner", ["mlp", "concat", "perceiver"])
def test_images_do_not_mix_whatever_is_inside(inner: str, variant: str) -> None:
    encoder = spec(8, side=64)
    connector = dragonfly(encoder, 6, inner, variant=variant, pool=2)
    pictures = [marked(size, encoder, {"factor": 2}) for size in (Size(64, 64), Size(400, 90), Size(64, 64))]
    x = [torch.randn(len(pyramid.crops["main"]), 64, 8) for pyramid, _, _ in pictures]
    together = connect(connector, seen(torch.cat(x), Grid(8, 8)), *(pyramid for pyramid, _, _ in pictures))
    alone = [connect(connector, seen(each, Grid(8, 8)), p) for each, (p, _, _) in zip(x, pictures, strict=True)]
    torch.testing.assert_close(together.tokens_VD, torch.cat([one.tokens_VD for one in alone]), rtol=1e-4, atol=1e-6)
    assert together.counts == tuple(count for one in alone for count in one.counts)
    assert sum(map(sum, together.counts)) == len(together.tokens_VD)
    assert len(together.counts[0]) == (21 if variant == "pool" else 9)


def test_pooled_maps_are_read_by_the_inner_connector() -> None:
    """Pooling makes a coarser map; what the inner connector then merges are neighbours on it."""
    encoder = spec(4, side=64)
    connector = dragonfly(encoder, 6, "concat", variant="pool", pool=2)
    x_CND = torch.randn(2, 64, 4)
    out = connect(connector, seen(x_CND, Grid(8, 8)), layout(encoder, 0, 1))
    pooled_ND = torch.nn.functional.avg_pool2d(x_CND[1].T.view(4, 8, 8), 2).flatten(1).T
    maps = ((x_CND[0], Grid(8, 8)), (pooled_ND, Grid(4, 4)))
    expected = torch.cat([connector.inner.project(Features(x_ND, (grid,))) for x_ND, grid in maps])
    torch.testing.assert_close(out.tokens_VD, expected)
    assert out.counts == ((16, 4),)


def test_an_inner_connector_that_lies_is_named() -> None:
    encoder = spec(4, side=16)
    connector = dragonfly(encoder, 6, variant="pool", pool=2)
    honest = connector.inner.project
    connector.inner.project = lambda features: honest(features)[1:]  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=r"Dragonfly returned \(4, 6\).*inner connector Mlp declared 5 tokens"):
        connect(connector, seen(torch.randn(2, 4, 4), Grid(2, 2)), layout(encoder, 0, 1))


# ---------------------------------------------------------------------------------------------------------- refusals

PYRAMID = Pyramid(PyramidConfig(factor=2))
ENCODER = {"main": spec(8, side=64)}
CLS = {"main": replace(spec(8, side=64), prefix=1)}


@pytest.mark.parametrize(
    ("options", "view", "encoders", "said"),
    [
        ({}, PYRAMID, {"a": spec(8), "b": spec(8)}, r"one encoder, this model has 2 \(a, b\)"),
        ({}, Single(SingleConfig()), ENCODER, "variant pool needs crops above the lowest level.*view Single.* level 0"),
        ({"variant": "select"}, Split(SplitConfig()), ENCODER, r"--view pyramid.*Split.* levels 0, 1"),
        ({"variant": "select"}, Pyramid(PyramidConfig(levels="low+medium")), ENCODER, "Pyramid .* levels 0, 1"),
        ({"variant": "select", "top_k": 5}, PYRAMID, ENCODER, "keeps 5 high crops .* only 4 of 16 belong to one"),
        (
            {"variant": "select", "regions": "block"},
            Pyramid(PyramidConfig(high=("3x3",))),
            ENCODER,
            "cannot share 9 high crops evenly among 4 medium ones",
        ),
        (  # not the largest image's grids, but those of wide ones
            {"variant": "select", "regions": "block"},
            Pyramid(PyramidConfig(medium=("2x2", "1x3"), high=("4x4",))),
            ENCODER,
            "cannot share 16 high crops evenly among 3 medium ones",
        ),
        ({}, Anyres(AnyresConfig()), ENCODER, r"Anyres puts its tiles together.*--view\.merge flat"),
        ({"inner": "dragonfly"}, PYRAMID, ENCODER, "'dragonfly' looks at all crops at once"),
        (
            {"pool": 3},
            PYRAMID,
            ENCODER,
            r"averages 3x3 .* grid of 8x8; 9x9 would do \(an input of 72x72 pixels: --encoder\.size 72",
        ),
        (
            {"inner": "concat"},
            PYRAMID,
            {"main": spec(8, side=96)},
            r"grid of 3x3; 4x4 would do behind a pooling of 4x4, 16x16 in front of it \(an input of 128x128",
        ),
        ({"inner": "concat"}, PYRAMID, {"main": spec(8, side=56)}, r"grid of 7x7; 8x8 would do"),
        (
            {"inner": "perceiver", "keep_prefix": True},
            PYRAMID,
            CLS,
            "'perceiver' does not: .*--connector.no-keep-prefix",
        ),
        ({"inner": "concat", "keep_prefix": True}, PYRAMID, CLS, "'concat' does not"),
    ],
)
def test_what_cannot_work_is_refused(
    options: dict[str, Any], view: View, encoders: dict[str, EncoderSpec], said: str
) -> None:
    with pytest.raises(IncompatiblePartsError, match=said) as caught:
        Dragonfly.check(config(**options), view, encoders)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "view", "encoders"),
    [
        ({}, PYRAMID, ENCODER),
        ({}, Split(SplitConfig()), ENCODER),
        ({"variant": "select", "top_k": 4}, PYRAMID, ENCODER),
        ({"variant": "select", "query": "low", "inner": "perceiver"}, PYRAMID, CLS),
        ({"inner": "concat", "pool": 2}, PYRAMID, ENCODER),
        ({"keep_prefix": True, "inner": "perceiver"}, PYRAMID, ENCODER),  # there is none to keep
        (VERSION_1, Pyramid(PyramidConfig(high=HIGH_1)), CLS),
    ],
)
def test_what_works_is_not(options: dict[str, Any], view: View, encoders: dict[str, EncoderSpec]) -> None:
    Dragonfly.check(config(**options), view, encoders)


def test_what_the_inner_connector_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Any, view: View, encoders: dict[str, EncoderSpec]) -> None:
        raise IncompatiblePartsError("not with me")

    monkeypatch.setattr(Mlp, "check", refuse)
    with pytest.raises(IncompatiblePartsError, match="not with me"):
        Dragonfly.check(config(), PYRAMID, ENCODER)


def test_counts_that_would_depend_on_the_picture_are_refused() -> None:
    encoder = spec(8, side=64)
    two, high = layout(encoder, 1, 1).crops["main"], layout(encoder, *[2] * 6).crops["main"]
    overlap = (replace(two[0], box=Box(0, 0, 70, 50)), two[1], *high)
    select = config(variant="select")
    with pytest.raises(IncompatiblePartsError, match="do not overlap"):
        select.counts(ImageLayout(Size(100, 50), {"main": overlap}), {"main": encoder})
    mixed = (*two, *high[:-1], replace(high[-1], canvas=Size(32, 32)))
    with pytest.raises(IncompatiblePartsError, match="high crops of one size"):
        select.counts(ImageLayout(Size(100, 50), {"main": mixed}), {"main": encoder})
    assert select.counts(layout(encoder, 0, 2), {"main": encoder}) == (64,), "no region, nothing selected"


def test_a_grid_that_does_not_divide_names_one_that_would() -> None:
    encoder = spec(8, side=40)
    with pytest.raises(GridError) as caught:
        config(pool=4).counts(layout(encoder, 0, 1), {"main": encoder})
    assert caught.value.nearest == Grid(4, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool": 0}, "--connector.pool must be at least 1"),
        ({"top_k": 0}, "--connector.top-k must be at least 1"),
        ({"inner": "mlpp"}, "unknown connector 'mlpp': did you mean mlp"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BeniError, match=said):
        config(**options)
