"""Reference computations of published parts: tensors in files, and numbers by a convention of deterministic filling.

The files were made by running the published implementations with random weights in float32: `in.*` inputs, `w.*`
weights under the reference's own names, `out.*` outputs. Numbers are sums of outputs in float64, with every input and
weight filled by `det`.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Rename = Callable[[str], str]
"""The reference's name of one of our parameters."""


def golden(name: str) -> dict[str, dict[str, Tensor]]:
    """A file's tensors as {in: …, w: …, out: …}."""
    groups: dict[str, dict[str, Tensor]] = {"in": {}, "w": {}, "out": {}}
    for key, tensor in load_file(Path(__file__).parent / f"{name}.safetensors").items():
        group, rest = key.split(".", 1)
        groups[group][rest] = tensor
    return groups


def load_reference(module: nn.Module, weights: Mapping[str, Tensor], rename: Rename = str) -> None:
    """Load weights that have the reference's names; every one of them must be used."""
    own = dict(module.named_parameters())
    assert {rename(name) for name in own} == set(weights)
    module.load_state_dict({name: weights[rename(name)] for name in own}, strict=False)


def det(shape: tuple[int, ...], seed: int, scale: float = 0.5) -> Tensor:
    """scale · sin(0.7·i + 1.3·seed + 0.1) at flat index i, in float64."""
    count = math.prod(shape)
    return (scale * torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + 1.3 * seed + 0.1)).view(shape)


def fill(module: nn.Module, rename: Rename = str) -> nn.Module:
    """Fill every parameter by its rank (from 1) among the reference's sorted names; scales of norms lie around 1."""
    module.double()
    named = sorted((rename(name), parameter) for name, parameter in module.named_parameters())
    for rank, (name, parameter) in enumerate(named, start=1):
        values = det(tuple(parameter.shape), rank, 1.0)
        if parameter.ndim == 1 and name.endswith("weight"):
            values = 1 + 0.25 * values
        parameter.data.copy_(values)
    return module


def assert_numbers(
    out: Tensor, total: float, absolute: float, first: list[float], last: list[float], rtol: float = 1e-8
) -> None:
    """Compare sum, sum of absolute values, the first four and the last two values."""
    flat = out.detach().flatten()
    found = torch.cat([flat.sum()[None], flat.abs().sum()[None], flat[:4], flat[-2:]])
    torch.testing.assert_close(
        found, torch.tensor([total, absolute, *first, *last], dtype=out.dtype), rtol=rtol, atol=rtol / 10
    )
