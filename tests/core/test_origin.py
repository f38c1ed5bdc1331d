"""What is said of a part that was saved elsewhere: its package is not here, is another, or has lost it."""

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from beni.config import part_from_dict
from beni.errors import OtherRelease, PluginError

TABLE: dict[str, Any] = {
    "name": "nets@net-parts",
    "origin": {"class": "net_parts:Nets", "distribution": "net-parts", "version": "1.0"},
}


def install(site: Path, version: str, target: str = "") -> None:
    """A distribution's metadata, and maybe its entry point."""
    info = site / f"net_parts-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: net-parts\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[beni.connectors]\nnets = {target}\n" if target else "")


def test_the_package_is_not_here() -> None:
    with pytest.raises(PluginError, match=r"comes with the package net-parts, .* pip install 'net-parts==1\.0'"):
        part_from_dict("connector", TABLE)


def test_also_inside_another_part() -> None:
    with pytest.raises(PluginError, match=r"dragonfly.*'inner': connector 'nets' comes with the package net-parts"):
        part_from_dict("connector", {"name": "dragonfly", "inner": TABLE})


def test_another_release_has_no_such_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "2.0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"nets.*; it was saved with net-parts 1\.0 \(net_parts:Nets\), and 2\.0 is"):
        part_from_dict("connector", TABLE)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_another_release_is_warned_of(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, version, "net_parts:Nets")
    (tmp_path / "net_parts.py").write_text("from beni_plugins.connectors.mlp import Mlp\nclass Nets(Mlp): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net_parts", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert part_from_dict("connector", TABLE).load().__name__ == "Nets"
    found = [str(each.message) for each in caught if each.category is OtherRelease]
    assert len(found) == (version != "1.0")
    assert all("net-parts 1.0" in text and "net-parts 2.0" in text for text in found)


def test_a_class_that_was_named_directly(tmp_path: Path) -> None:
    def saved(name: str) -> dict[str, Any]:
        return {"name": name, "origin": {"class": name, "distribution": name.split(".")[0], "version": ""}}

    with pytest.raises(PluginError, match=r"'Nets' is a class in the module lone_parts\.all, which is not here"):
        part_from_dict("connector", saved("lone_parts.all:Nets"))
    with pytest.raises(PluginError, match=r"'Nets' is a class in the file .*nets\.py, which is not here.*new-plugin"):
        part_from_dict("connector", saved(f"{tmp_path}/nets.py:Nets"))


def test_parts_of_ours_are_not_compared() -> None:
    """A release of beni is answered for by its own tests."""
    table = part_from_dict("connector", {"name": "mlp"}).to_dict()
    table["origin"] |= {"version": "0.0.1", "class": "elsewhere:Mlp"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part_from_dict("connector", table)
