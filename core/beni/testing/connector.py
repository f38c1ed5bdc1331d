"""Checks of connectors: counts, independence of images, precision, gradients, and tokens that stay apart.

Features of noise come on many grids, as different images and crops would have them, without an encoder.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import product
from typing import Any, ClassVar
from unittest import SkipTest

import torch
from torch import Tensor

from beni.config import choose
from beni.errors import GridError, IncompatiblePartsError
from beni.interfaces import Connector, ConnectorConfig, load
from beni.model.build import describe, view_of
from beni.registry import available
from beni.testing.model import ModelConformance
from beni.testing.small import ENCODER, configure
from beni.testing.suite import require
from beni.types import Box, Crop, EncoderSpec, Features, Grid, ImageLayout, Size

OUT_WIDTH = 32
"""Channels that the fusion wants; the small encoder has others."""
SIDES = (4, 2, 3, 6, 8, 1, 5, 7, 9, 10, 12, 14, 16, 24, 27)
"""Of the square grids that are tried, the commonest multiples first."""
SHAKE = 0.05
"""Standard deviation of what is added to parameters that may start at zero."""
BF16_ERROR = 0.05
"""Of the norm of the tokens: bf16 has 8 bits."""
Image = Sequence[Grid]
"""The grids of an image's crops."""


class ConnectorConformance(ModelConformance):
    """Subclass it and name your connector: `part = "mine"`."""

    kind: ClassVar[str] = "connector"

    @classmethod
    def neighbours(cls) -> dict[str, Any]:
        """A view, and a small encoder whose grid the connector accepts."""
        stride = ENCODER["size"] // 4
        part = load("connector", cls.chosen())
        refusals: dict[str, None] = {}
        for reference in ("single", *(plugin.reference for plugin in available("view"))):
            view = choose("view", reference)
            for side in SIDES:
                encoders = {"main": ENCODER | {"size": side * stride}}
                try:
                    part.check(cls._config(), view_of(view), describe(configure(encoders=encoders).encoders))  # type: ignore[attr-defined]
                except IncompatiblePartsError as error:
                    refusals[str(error)] = None
                    continue
                return {"encoders": encoders, "view": view.to_dict()}
        raise AssertionError(
            f"`check` accepts no installed view with a square grid of {', '.join(map(str, sorted(SIDES)))} tokens on "
            f"a side: {'; '.join(refusals)}"
        )

    @classmethod
    def _config(cls) -> ConnectorConfig:
        config = cls.chosen().config
        require(
            isinstance(config, ConnectorConfig),
            f"{type(config).__name__} must derive from beni.interfaces.ConnectorConfig and declare `out_grid`",
        )
        return config  # type: ignore[return-value]

    @cached_property
    def specs(self) -> dict[str, EncoderSpec]:
        """The encoders of the small model."""
        return describe(configure(encoders=self.tables()["encoders"]).encoders)

    def connector(self) -> Connector:
        """A fresh one."""
        torch.manual_seed(0)
        return load("connector", self.chosen())(self._config(), self.specs, OUT_WIDTH).eval()

    def test_declared_counts_are_returned(self) -> None:
        connector = self.connector()
        for images in self.batches():
            layouts = self.layouts(images)
            tokens = connector(self.features(images), layouts)
            declared = tuple(self._config().counts(layout, self.specs) for layout in layouts)
            shape = (sum(map(sum, declared)), OUT_WIDTH)
            require(
                tokens.counts == declared and tuple(tokens.tokens_VD.shape) == shape,
                f"crops of {_shown(images)} became {tuple(tokens.tokens_VD.shape)} as {tokens.counts}, but `counts` "
                f"declared {shape} as {declared}: `project` and `out_grid` must agree",
            )
            require(bool(tokens.tokens_VD.isfinite().all()), f"tokens of {_shown(images)} are not finite")

    def test_a_refused_grid_has_an_alternative(self) -> None:
        for grid in self._grids(accepted=False):
            try:
                self._config().out_grid(grid)
            except GridError as error:
                near = error.nearest
                require(
                    near is None or _accepts(self._config(), self.specs, [Grid(*near)]),
                    f"a grid of {grid} is refused in favour of {Grid(*(near or (0, 0)))}, which is refused too",
                )
            except IncompatiblePartsError:
                continue

    def test_images_do_not_see_each_other(self) -> None:
        connector = self.connector()
        for images in self.batches():
            features = self.features(images)
            together = self._per_image(connector, features, images)
            for number, image in enumerate(images):
                alone = self._per_image(connector, self._only(features, images, number), [image])[0]
                require(
                    torch.allclose(alone, together[number], rtol=1e-4, atol=1e-4 * float(alone.abs().max())),
                    f"tokens of an image of {_shown([image])} depend on the other images of {_shown(images)}: nothing "
                    f"may mix crops of different images",
                )
                require(
                    not torch.equal(
                        self._per_image(connector, self.features([image], seed=1), [image])[0], alone.detach()
                    ),
                    f"tokens of an image of {_shown([image])} do not depend on its features",
                )

    def test_bf16_is_near_fp32(self) -> None:
        connector = self.connector()
        images = self.batches()[-1]
        features, layouts = self.features(images), self.layouts(images)
        half = {key: _cast(each, torch.bfloat16) for key, each in features.items()}
        with torch.no_grad():
            wanted = connector(features, layouts).tokens_VD
            found = deepcopy(connector).bfloat16()(half, layouts).tokens_VD
        require(
            found.dtype is torch.bfloat16,
            f"in bf16 the tokens are {found.dtype}: make no tensor without the dtype of the parameters or features",
        )
        error = float((found.float() - wanted).norm() / wanted.norm().clamp(min=1e-30))
        require(error < BF16_ERROR, f"bf16 is {error:.0%} away from fp32: compute norms and softmax in fp32")

    def test_gradients_reach_every_parameter(self) -> None:
        connector = self.connector()
        trained = {name: p for name, p in connector.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for parameter in trained.values():  # zeros at the start may hide what lies behind them
                parameter.add_(SHAKE * torch.randn_like(parameter))
        images = self.batches()[-1]
        features = {
            key: Features(each.tokens_ND.requires_grad_(), each.grids, each.prefix_CPD)
            for key, each in self.features(images).items()
        }
        tokens = connector(features, self.layouts(images)).tokens_VD
        (tokens * torch.randn_like(tokens)).sum().backward()
        for name, parameter in trained.items():
            require(
                parameter.grad is not None and bool(torch.count_nonzero(parameter.grad)),
                f"{name} gets no gradient: the tokens do not depend on it; use it, or leave it out",
            )
        for key, each in features.items():
            require(
                each.tokens_ND.grad is not None and bool(torch.count_nonzero(each.tokens_ND.grad)),
                f"the features of encoder '{key}' get no gradient, so that it could not be trained: remove no_grad and "
                f"detach",
            )

    def test_tokens_stay_distinct(self) -> None:
        """Learned queries that start equal read the same thing, and are told apart by nothing but rounding."""
        connector = self.connector()
        images = [[self._grids()[0]]]
        layouts, features = self.layouts(images), self.features(images)
        inputs = next(iter(features.values())).tokens_ND.requires_grad_()
        tokens = connector(features, layouts).tokens_VD
        if len(tokens) < 2:
            raise SkipTest("a crop becomes one token")
        if not torch.count_nonzero(tokens):
            raise SkipTest("a fresh one returns zeros")
        require(
            _apart(tokens.detach()),
            "two tokens of a crop are the same vector: learned queries must start different (torch.randn, not "
            "torch.ones)",
        )
        few = range(min(len(tokens), 8))
        gradients = [torch.autograd.grad(tokens[i].square().sum(), inputs, retain_graph=True)[0] for i in few]
        require(
            _apart(torch.stack([gradient.flatten() for gradient in gradients])),
            "two tokens of a crop send equal gradients to the features: they read the same thing",
        )

    def batches(self) -> list[list[Image]]:
        """Batches of images, an image being the grids of its crops; the last one has everything in it."""
        first, *others = self._grids()
        tall = [grid for grid in others if grid.rows != grid.cols][:4]
        square = [grid for grid in others if grid.rows == grid.cols][:3]
        batches: list[list[Image]] = [[[grid]] for grid in (first, *square, *tall)]
        batches += [[[first, first, first]], [[first], [first]], [[first], [first, first], [first]]]
        mixed = [*square[:1], *tall[:2]]
        batches.append([[first, *mixed], [first], [*mixed, first]])
        kept = ([image for image in batch if _accepts(self._config(), self.specs, image)] for batch in batches)
        return [batch for batch in kept if batch]

    def layouts(self, images: Sequence[Image]) -> list[ImageLayout]:
        """How these images were cut."""
        return [
            ImageLayout(
                Size(64, 64), {key: tuple(_crop(spec, grid) for grid in image) for key, spec in self.specs.items()}
            )
            for image in images
        ]

    def features(self, images: Sequence[Image], seed: int = 0) -> dict[str, Features]:
        """Noise, as every encoder would give for these images."""
        made = torch.Generator().manual_seed(seed)
        grids = tuple(grid for image in images for grid in image)
        found = {}
        for key, spec in self.specs.items():
            prefix = torch.randn(len(grids), spec.prefix, spec.width, generator=made) if spec.prefix else None
            tokens = torch.randn(sum(grid.count for grid in grids), spec.width, generator=made)
            found[key] = Features(tokens, grids, prefix)
        return found

    def _grids(self, accepted: bool = True) -> list[Grid]:
        """Grids that the connector accepts, that of the small model first; or those that it refuses."""
        own = next(iter(self.specs.values()))
        grids = [own.grid(own.size), *(Grid(*sides) for sides in product(SIDES[:8], repeat=2))]
        found = [grid for grid in dict.fromkeys(grids) if _accepts(self._config(), self.specs, [grid]) == accepted]
        require(bool(found) or not accepted, "`out_grid` refuses the grid of the encoder it was made for")
        return found

    def _only(self, features: Mapping[str, Features], images: Sequence[Image], number: int) -> dict[str, Features]:
        """The features of one image of a batch."""
        first = sum(len(image) for image in images[:number])
        last = first + len(images[number])
        found = {}
        for key, each in features.items():
            at = sum(grid.count for grid in each.grids[:first])
            count = sum(grid.count for grid in each.grids[first:last])
            prefix = None if each.prefix_CPD is None else each.prefix_CPD[first:last]
            found[key] = Features(each.tokens_ND[at : at + count], each.grids[first:last], prefix)
        return found

    def _per_image(
        self, connector: Connector, features: Mapping[str, Features], images: Sequence[Image]
    ) -> tuple[Tensor, ...]:
        with torch.no_grad():
            tokens = connector(features, self.layouts(images))
        return tokens.tokens_VD.split([sum(counts) for counts in tokens.counts])


def _accepts(config: ConnectorConfig, specs: Mapping[str, EncoderSpec], image: Image) -> bool:
    crops = {key: tuple(_crop(spec, grid) for grid in image) for key, spec in specs.items()}
    layout = ImageLayout(Size(64, 64), crops)
    try:
        config.counts(layout, specs)
    except IncompatiblePartsError:
        return False
    return True


def _crop(spec: EncoderSpec, grid: Grid) -> Crop:
    canvas = Size(grid.cols * spec.stride, grid.rows * spec.stride)
    return Crop(canvas, Box(0, 0, 64, 64), Box.of(canvas))


def _cast(features: Features, dtype: torch.dtype) -> Features:
    prefix = None if features.prefix_CPD is None else features.prefix_CPD.to(dtype)
    return Features(features.tokens_ND.to(dtype), features.grids, prefix)


def _apart(rows: Tensor) -> bool:
    """Whether no two of these vectors are the same, by more than rounding."""
    return bool(torch.pdist(rows.float()).min() > 1e-5 * rows.norm(dim=1).max())


def _shown(images: Sequence[Image]) -> str:
    def each() -> Iterator[str]:
        for image in images:
            yield "+".join(map(str, image))

    return ", ".join(each())
