"""Where a part was found when it was saved, against what is installed here."""

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from beni.errors import OtherRelease, PluginError
from beni.registry import BUILT_IN, GROUPS, UNKNOWN, Plugin, is_path


@dataclass(frozen=True, slots=True)
class Origin:
    """The class of a part, and the package that brought it."""

    target: str
    """`module:Class`, or `path/to/file.py:Class`."""
    distribution: str
    version: str

    @classmethod
    def of(cls, plugin: Plugin) -> "Origin":
        return cls(plugin.target, plugin.distribution, plugin.version)

    @classmethod
    def read(cls, table: Any) -> "Origin | None":
        """The inverse of `to_dict`; None where a table, written by hand, says nothing of it."""
        if not isinstance(table, Mapping) or not {"class", "distribution", "version"} <= table.keys():
            return None
        return cls(str(table["class"]), str(table["distribution"]), str(table["version"]))

    def to_dict(self) -> dict[str, str]:
        """As it stands in a part's table in config.json."""
        return {"class": self.target, "distribution": self.distribution, "version": self.version}

    @property
    def owner(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}".strip()

    def explain(self, kind: str, reference: str, error: PluginError) -> PluginError:
        """Why a saved part cannot be had here, and what to install.

        Args:
            kind: of the part.
            reference: what names it.
            error: what looking for it said.
        """
        name = reference.partition("@")[0]
        module, _, class_name = self.target.rpartition(":")
        if is_path(reference):
            there = Path(module).is_file() if module.endswith(".py") else importlib.util.find_spec(module.split(".")[0])
            if there:
                return error
            what = f"file {module}" if module.endswith(".py") else f"module {module}"
            return PluginError(
                f"{kind} '{class_name}' is a class in the {what}, which is not here: get it from whoever saved this, "
                "or make it a package, which can be installed and shared (beni new-plugin)"
            )
        here = _installed(self.distribution)
        if self.distribution in (BUILT_IN, UNKNOWN) or here == self.version:
            return error
        if here is not None:
            return PluginError(f"{error}; it was saved with {self.owner} ({self.target}), and {here} is installed here")
        return PluginError(
            f"{kind} '{name}' comes with the package {self.distribution}, which is not installed here: it was saved "
            f"with {self.owner} (entry point '{name}' of {GROUPS[kind]}, class {self.target}); install it with pip "
            f"install '{self.distribution}=={self.version}', or get it from whoever saved this"
        )

    def compare(self, plugin: Plugin) -> None:
        """Warn, with `OtherRelease`, where a third party's part is found in another release or as another class."""
        if plugin.distribution in (BUILT_IN, UNKNOWN) or is_path(plugin.name) or Origin.of(plugin) == self:
            return
        warnings.warn(
            f"{plugin.kind} '{plugin.name}' was saved with {self.owner} ({self.target}), and is taken from "
            f"{plugin.owner} ({plugin.target}): it may compute something else; pip install "
            f"'{self.distribution}=={self.version}' brings back what it was",
            OtherRelease,
            stacklevel=2,
        )


def _installed(distribution: str) -> str | None:
    """The version of a distribution that is installed, if one is."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
