"""Batch norms whose statistics are constants: a crop's features must not depend on what else is in the row."""

from functools import cache

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def hold_batch_norms(module: nn.Module) -> None:
    """Make all batch norms in a module keep to the statistics they have, in training too.

    No buffer moves, and statistics are read in the precision of the weights: FSDP lowers that of parameters, not of
    buffers. A network from scratch is therefore not normalised by its batch norms: choose one without them.
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = _held(type(norm))  # type: ignore[arg-type]
            norm.eval()


@cache
def _held(base: type[_BatchNorm]) -> type[_BatchNorm]:
    def train(self: _BatchNorm, mode: bool = True) -> _BatchNorm:
        return nn.Module.train(self, False)

    def statistic(name: str) -> property:
        def read(self: _BatchNorm) -> Tensor | None:
            value, weight = self._buffers[name], self._parameters.get("weight")
            return value if value is None or weight is None else value.to(weight.dtype)

        return property(read)

    held = {"train": train, "running_mean": statistic("running_mean"), "running_var": statistic("running_var")}
    return type(f"{base.__name__}Held", (base,), held)
