"""Features of chosen layers of a network: what each layer gives, and several of them joined by channel.

Shapes: C crops, D channels, R rows and S columns of a map, N tokens of a crop, P prefix tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from beni.nn.unused import unused_parameters
from beni.types import Features, Grid


class Level(NamedTuple):
    """What one layer gives: a map, and the tokens in front of it (CLS, registers), if there are any."""

    map_CDRS: Float[Tensor, "C D R S"]
    prefix_CPD: Float[Tensor, "C P D"] | None = None

    @classmethod
    def of_tokens(cls, tokens_CND: Float[Tensor, "C N D"], grid: Grid) -> "Level":
        """A sequence that ends in a grid, row by row; tokens in front of the grid are the prefix."""
        prefix = tokens_CND.shape[1] - grid.count
        map_CDRS = rearrange(tokens_CND[:, prefix:], "c (r s) d -> c d r s", r=grid.rows)
        return cls(map_CDRS, tokens_CND[:, :prefix] if prefix else None)

    @property
    def grid(self) -> Grid:
        """Rows and columns of the map."""
        return Grid(*self.map_CDRS.shape[2:])


def join(levels: Sequence[Level]) -> Features:
    """Concatenate layers by channel, in the order given.

    Coarser maps are resized to the finest grid among them: bilinear, align_corners=False, in fp32, as Cambrian-1 does
    with the stages of its ConvNeXt (Tong et al. 2024, arXiv 2406.16860). Prefixes are joined where every layer has one.
    """
    grid = max((level.grid for level in levels), key=lambda grid: grid.count)
    map_CDRS = torch.cat([_resized(level.map_CDRS, grid) for level in levels], dim=1)
    prefixes = [level.prefix_CPD for level in levels if level.prefix_CPD is not None]
    return Features(
        rearrange(map_CDRS, "c d r s -> (c r s) d"),
        (grid,) * len(map_CDRS),
        torch.cat(prefixes, dim=-1) if len(prefixes) == len(levels) else None,
    )


def alike(levels: Sequence[Level]) -> int:
    """How many equal shares of the joined channels are a layer each: as many as layers, or 1 if widths differ."""
    return len(levels) if len({level.map_CDRS.shape[1] for level in levels}) == 1 else 1


def cut(network: Any, layers: Sequence[int], norm: bool) -> list[int]:
    """Drop what a network has behind the last of some layers, and its final norm if that is not wanted either.

    Args:
        network: one that has timm's `prune_intermediate_layers`.
        layers: -1 is the last one of the whole network.
        norm: whether the final norm will be applied.

    Returns:
        The layers, counted from the front.

    Raises:
        AssertionError: there is no such layer.
    """
    return list(network.prune_intermediate_layers(list(layers), prune_norm=not norm, prune_head=True))


def intermediates(
    network: Any, pixels_C3HW: Float[Tensor, "C 3 height width"], layers: Sequence[int], norm: bool
) -> list[Level]:
    """Outputs of some layers of a network that has timm's `forward_intermediates`, in the order of `layers`.

    Args:
        network: convolutional ones have stages for layers, and no prefix.
        pixels_C3HW: the crops.
        layers: counted from the front, as `cut` returns them.
        norm: whether the final norm is applied to each; a network of stages has one for its last stage, or none.
    """
    forward, wanted = network.forward_intermediates, sorted(set(layers))
    prefix = {"return_prefix_tokens": True} if getattr(network, "num_prefix_tokens", 0) else {}
    outputs = forward(pixels_C3HW, indices=wanted, norm=norm, intermediates_only=True, **prefix)
    found = {
        layer: Level(*output) if isinstance(output, tuple) else Level(output)
        for layer, output in zip(wanted, outputs, strict=True)
    }
    return [found[layer] for layer in layers]


def norm_matters(network: nn.Module, read: Callable[[bool], Features]) -> bool:
    """Whether features with the final norm depend on parameters that those without it do not. Use the meta device."""
    plain, normed = (unused_parameters(network, read(norm).tokens_ND) for norm in (False, True))
    return plain != normed


def _resized(map_CDRS: Tensor, grid: Grid) -> Tensor:
    if map_CDRS.shape[2:] == grid:
        return map_CDRS
    return F.interpolate(map_CDRS.float(), size=tuple(grid), mode="bilinear", align_corners=False).to(map_CDRS.dtype)
