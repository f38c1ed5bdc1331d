"""Finds parts by name: entry points of installed packages, `package.module:Class`, or `path/to/file.py:Class`.

Listing reads package metadata and imports nothing. A part is imported when it is named, so a broken package fails only
when somebody asks for it. Built-in parts come through the same entry points as everybody else's and keep their plain
names; nobody can replace them silently.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from beni.errors import PluginError

API_VERSION = 1
"""Version of the plugin interface. A part declares the one it was written for as `beni_api`."""

BUILT_IN = "beni"
"""The distribution whose parts own their plain names."""
UNKNOWN = "unknown"
"""Stands for the distribution of an entry point that does not say."""

GROUPS = {
    "encoder": "beni.encoders",
    "connector": "beni.connectors",
    "fusion": "beni.fusions",
    "view": "beni.views",
    "llm": "beni.llms",
    "source": "beni.sources",
}


@dataclass(frozen=True, slots=True)
class Plugin:
    """A part that can be named: where it comes from, without having imported it."""

    kind: str
    name: str
    target: str
    """`module:Class`, or `path/to/file.py:Class`."""
    distribution: str
    version: str

    def load(self) -> type:
        """Import the class.

        Raises:
            PluginError: the import fails, the class is missing or unfinished, or it was written for another interface
                version.
        """
        try:
            part = _import(self.target)
        except PluginError as error:
            raise PluginError(f"{self.kind} '{self.name}': {error}") from error
        except Exception as error:  # a third party's import may raise anything; we say whose it was
            raise PluginError(
                f"{self.kind} '{self.name}' of {self.owner} cannot be imported: {type(error).__name__}: {_line(error)}"
            ) from error
        version = getattr(part, "beni_api", None)
        if version is None:
            raise PluginError(
                f"{self.kind} '{self.name}' ({self.target}) does not say which plugin interface it was written for: if "
                f"it is a {self.kind} for beni, give the class `beni_api = {API_VERSION}`"
            )
        if version != API_VERSION:
            raise PluginError(
                f"{self.kind} '{self.name}' ({self.target}) was written for plugin interface {version}, this is "
                f"{API_VERSION}: install a matching release of {self.owner}"
            )
        if missing := unfinished(part):
            raise PluginError(f"{self.kind} '{self.name}' ({self.target}) does not implement {missing}")
        return part

    @property
    def owner(self) -> str:
        """The distribution and its version; for a class that was named directly, the package or the file."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def reference(self) -> str:
        """What names this part again wherever it is read, whatever else is installed there."""
        plain = self.distribution in (BUILT_IN, UNKNOWN) or is_path(self.name)
        return self.name if plain else f"{self.name}@{self.distribution}"

    @property
    def typed(self) -> str:
        """What to type for this part here: its name, unless that alone means another part, or none."""
        try:
            return self.name if find(self.kind, self.name) == self else self.reference
        except PluginError:
            return self.reference

    def location(self) -> str:
        """`file:line` of the class; imports it."""
        part = self.load()
        return f"{inspect.getsourcefile(part)}:{inspect.getsourcelines(part)[1]}"


def available(kind: str) -> list[Plugin]:
    """All parts of a kind that installed packages offer, sorted by name. Imports none of them.

    Packages that come into a folder of `sys.path` after the first call are not seen by this process.
    """
    return list(_installed(tuple(sys.path))[kind])


@cache
def _installed(path: tuple[str, ...]) -> dict[str, list[Plugin]]:
    """What packages on a search path offer, by kind. Reading metadata takes a while, and it is asked for often."""
    offered = entry_points()
    return {
        kind: sorted(
            {_describe(kind, entry) for entry in offered.select(group=group)},
            key=lambda plugin: (plugin.name, plugin.distribution),
        )
        for kind, group in GROUPS.items()
    }


def find(kind: str, reference: str) -> Plugin:
    """Resolve what a user typed to one part.

    Args:
        kind: one of `GROUPS`.
        reference: `name`, `name@distribution`, `package.module:Class` or `path/to/file.py:Class`.

    Raises:
        PluginError: unknown or ambiguous; the message names the closest parts.
    """
    if is_path(reference):
        return _named_directly(kind, reference)
    name, _, distribution = reference.partition("@")
    by_name: dict[str, list[Plugin]] = defaultdict(list)
    for plugin in available(kind):
        by_name[plugin.name].append(plugin)
    matches = [p for p in by_name.get(name, []) if not distribution or _same(p.distribution, distribution)]
    if not matches:
        raise PluginError(_unknown(kind, reference, by_name))
    own = [p for p in matches if p.distribution == BUILT_IN]
    if own and not distribution:
        return own[0]
    if len(matches) > 1:
        choices = " or ".join(f"{p.name}@{p.distribution}" for p in matches)
        raise PluginError(f"{kind} '{name}' is offered by several packages: write {choices}")
    return matches[0]


def is_path(reference: str) -> bool:
    """Whether a reference names a class directly (`package.module:Class`, `file.py:Class`), not a registered part."""
    module, colon, name = reference.rpartition(":")
    return bool(colon) and name.isidentifier() and (module.endswith(".py") or ("." in module and "/" not in module))


def unfinished(cls: type) -> str:
    """What a class still has to implement before it can be used; empty if nothing."""
    return ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))


def _describe(kind: str, entry: EntryPoint) -> Plugin:
    target = entry.value.partition("[")[0].strip()  # extras are of no use to us
    dist = entry.dist
    return Plugin(kind, entry.name, target, dist.name if dist else UNKNOWN, dist.version if dist else "")


def _named_directly(kind: str, reference: str) -> Plugin:
    """A class by module or file; a file gets its whole path, so that a saved run finds it from any folder."""
    module, _, name = reference.rpartition(":")
    if not module.endswith(".py"):
        return Plugin(kind, reference, reference, module.split(".")[0], "")
    path = Path(module).resolve()
    return Plugin(kind, f"{path}:{name}", f"{path}:{name}", str(path), "")


def _same(one: str, other: str) -> bool:
    """Whether two spellings name one distribution (`My.Parts` and `my-parts` do)."""
    first, second = (re.sub(r"[-_.]+", "-", name).lower() for name in (one, other))
    return first == second


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _unknown(kind: str, reference: str, by_name: dict[str, list[Plugin]]) -> str:
    name = reference.partition("@")[0]
    if "@" in reference and name in by_name:
        owners = ", ".join(p.distribution for p in by_name[name])
        return f"no installed package offers {kind} '{reference}'; '{name}' comes from {owners}"
    close = difflib.get_close_matches(reference, by_name, n=2, cutoff=0.5)
    hint = ""
    if close:
        hint = f"did you mean {' or '.join(close)}? "
    elif kind == "source" and _exists(reference):
        hint = f"that is a file or a folder: say what reads it, as in NAME:{reference}; "
    others = "others come with a package (pip install …) or as path/to/file.py:Class"
    if kind == "llm":
        others = f"a Hugging Face model is written owner/name or hf:NAME, a local one as its folder; {others}"
    return f"unknown {kind} '{reference}': {hint}installed: {', '.join(sorted(by_name)) or 'none'}; {others}"


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name that is too long for one
        return False


def _import(target: str) -> type:
    module_name, _, class_name = target.rpartition(":")
    if module_name.endswith(".py"):
        path = Path(module_name).resolve()
        if not path.is_file():
            raise PluginError(f"there is no file {path}")
        name = f"beni_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        module = sys.modules.get(name)
        if module is None:
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
    else:
        module = importlib.import_module(module_name)
    part = getattr(module, class_name, None)
    if not isinstance(part, type):
        close = difflib.get_close_matches(class_name, [k for k, v in vars(module).items() if isinstance(v, type)], n=1)
        raise PluginError(f"{module_name} has no class '{class_name}'{f'; did you mean {close[0]}?' if close else ''}")
    return part
