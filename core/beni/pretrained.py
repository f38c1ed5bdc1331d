"""Parts that start from weights: of beni's own runs, or of the model they were published with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from beni.config import PartConfig
from beni.errors import ConfigError
from beni.weights import common_prefix, find_weights, misfits, read_state_dict, sha256


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where weights came from: goes into config.json."""

    origin: str
    """A hub id, a file, or a package with its version."""
    sha256: str = ""
    """Of the weight file, where there is one file."""


@dataclass(frozen=True, slots=True)
class LoadableConfig(PartConfig):
    """Options of a part that may start from weights."""

    weights: str = field(default="none", kw_only=True)
    """none: from scratch; a weight file, a folder that holds one (a run's model), or package:NAME. The names may be
    beni's own or those of the published model."""


class Loadable(nn.Module):
    """A part whose `Config` derives from `LoadableConfig`."""

    config: Any

    def convert_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the state dict of a published model, the tensors of this part under its own names.

        Names of everything else in the file are to be ignored; shapes need not be checked. By default no published
        model is known. `beni.weights.renamed` does it where tensors only have other names.
        """
        return {}

    def load_pretrained(self) -> Provenance | None:
        """Start from the weights that the options name; None where training starts from scratch.

        Raises:
            ConfigError: no such file, or one that lacks a tensor of this part or has it in another shape.
        """
        if self.config.weights == "none":
            return None
        path = find_weights(self.config.weights)
        self.load_state_dict(self._fitting(read_state_dict(path), path))
        return Provenance(self.config.weights, sha256(path))

    def _fitting(self, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        own = self.state_dict()
        if not own:
            raise ConfigError(f"{type(self).__name__} has no weights that {path} could be loaded into: leave it out")
        prefix = common_prefix(state, own)
        tried = [{name: state[prefix + name] for name in own if prefix + name in state}, self.convert_reference(state)]
        wrong = [misfits(found, own) for found in tried]
        if not all(wrong):
            found = tried[wrong.index([])]
            return {name: found[name] for name in own}
        best = max(range(2), key=lambda n: len(tried[n]))
        name, found = wrong[best][0], tried[best]
        what = (
            f"has '{name}' as {_shape(found[name])} where this model wants {_shape(own[name])}: set the part's options "
            f"to those it was trained with"
            if name in found
            else f"holds {len(found)} of its {len(own)} tensors, under beni's names or its published model's; "
            f"'{name}' is missing"
        )
        raise ConfigError(f"weights {path} do not fit {type(self).__name__}: the file {what}")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
