"""Parts are found by name without importing anybody; a broken package is its own problem."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beni.config import choose, part_from_dict
from beni.errors import PluginError
from beni.registry import GROUPS, available, find
from beni_plugins.connectors.mlp import Mlp

Install = Callable[..., None]

WORKING = "class Part:\n    beni_api = 1\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(distribution, {name: target}, {module: source})`: a package with connectors, as pip leaves it."""
    before = set(sys.modules)

    def put(distribution: str, parts: dict[str, str], modules: dict[str, str]) -> None:
        site = tmp_path / distribution
        info = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = [f"{name} = {target}" for name, target in parts.items()]
        (info / "entry_points.txt").write_text("[beni.connectors]\n" + "\n".join(lines) + "\n")
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))

    yield put
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_listing_imports_nothing(install: Install) -> None:
    install(
        "third-party",
        {"mine": "third_party_bomb:Part"},
        {"third_party_bomb": "raise RuntimeError('broken on\\nimport')"},
    )
    [mine] = [plugin for plugin in available("connector") if plugin.name == "mine"]
    assert (mine.distribution, mine.version, mine.target) == ("third-party", "1.2", "third_party_bomb:Part")
    assert "third_party_bomb" not in sys.modules
    with pytest.raises(
        PluginError, match=r"'mine' of third-party 1\.2 cannot be imported: RuntimeError: broken on import"
    ):
        find("connector", "mine").load()
    assert find("connector", "mlp").load() is Mlp


def test_every_built_in_loads() -> None:
    for kind in GROUPS:
        for plugin in available(kind):
            if plugin.distribution == "beni":
                assert plugin.load().beni_api == 1
                assert ":" in plugin.location()


def test_two_packages_with_one_name(install: Install) -> None:
    install("one-pack", {"mine": "one_pack:Part"}, {"one_pack": WORKING})
    install("other-pack", {"mine": "other_pack:Part"}, {"other_pack": WORKING})
    with pytest.raises(PluginError, match="write mine@one-pack or mine@other-pack"):
        find("connector", "mine")
    assert find("connector", "mine@one-pack").load().__module__ == "one_pack"
    assert find("connector", "mine@Other_Pack").load().__module__ == "other_pack"
    with pytest.raises(PluginError, match="'mine' comes from one-pack, other-pack"):
        find("connector", "mine@third")


def test_a_chosen_part_is_the_same_when_it_is_read_again(install: Install) -> None:
    """Configurations and saved models name the package, so that one installed later changes nothing."""
    source = "from beni.config import PartConfig\nclass Part:\n    beni_api = 1\n    Config = PartConfig\n"
    install("one-pack", {"mine": "one_again:Part", "mlp": "one_again:Part"}, {"one_again": source})
    made = [choose("connector", name) for name in ("mine", "mlp@one-pack", "mlp")]
    install("other-pack", {"mine": "other_again:Part"}, {"other_again": source})
    for part in made:
        again = part_from_dict("connector", part.to_dict())
        assert again.plugin == part.plugin and again.load() is part.load()
    assert [part.to_dict()["name"] for part in made] == ["mine@one-pack", "mlp@one-pack", "mlp"]


def test_a_built_in_keeps_its_name(install: Install) -> None:
    install("greedy", {"mlp": "greedy_mlp:Part"}, {"greedy_mlp": WORKING})
    assert find("connector", "mlp").load() is Mlp
    assert find("connector", "mlp@greedy").load().__module__ == "greedy_mlp"
    assert find("connector", "mlp@beni").load() is Mlp


def test_extras_of_an_entry_point_are_ignored(install: Install) -> None:
    install("extra", {"mine": "with_extra:Part [gpu]"}, {"with_extra": WORKING})
    assert find("connector", "mine").load().__name__ == "Part"


def test_unknown_names_get_the_closest() -> None:
    with pytest.raises(
        PluginError, match=r"unknown connector 'percever': did you mean perceiver\? installed: .*mlp.*pip install"
    ):
        find("connector", "percever")
    with pytest.raises(PluginError, match="owner/name"):
        find("llm", "gpt2")
    with pytest.raises(PluginError, match=f"that is a file or a folder: say what reads it, as in NAME:{__file__};"):
        find("source", __file__)
    with pytest.raises(PluginError, match="unknown source"):
        find("source", "x" * 300)


def test_a_class_by_module() -> None:
    plugin = find("connector", "beni_plugins.connectors.mlp:Mlp")
    assert plugin.load() is Mlp
    with pytest.raises(PluginError, match=r"no class 'Mlpp'; did you mean Mlp\?"):
        find("connector", "beni_plugins.connectors.mlp:Mlpp").load()
    with pytest.raises(PluginError, match="ModuleNotFoundError"):
        find("connector", "nobody.has_this:Part").load()


def test_a_class_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(WORKING)
    monkeypatch.chdir(tmp_path)
    plugin = find("connector", "mine.py:Part")
    part = plugin.load()
    monkeypatch.chdir("/")
    assert find("connector", plugin.name).load() is part  # the name that is saved works from any folder
    assert plugin.location() == f"{tmp_path / 'mine.py'}:1"
    with pytest.raises(PluginError, match=r"there is no file .*gone\.py"):
        find("connector", "gone.py:Part").load()


def test_a_file_that_fails_to_import_can_be_mended(tmp_path: Path) -> None:
    path = tmp_path / "mend.py"
    path.write_text("import nothing_of_that_name")
    with pytest.raises(PluginError, match=r"mend\.py cannot be imported"):
        find("connector", f"{path}:Part").load()
    path.write_text(WORKING)
    assert find("connector", f"{path}:Part").load().__name__ == "Part"


@pytest.mark.parametrize(
    ("source", "said"),
    [("class Part:\n    beni_api = 2\n", "interface 2, this is 1"), ("class Part: pass", "does not say")],
)
def test_another_interface_version_is_refused(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "old.py").write_text(source)
    with pytest.raises(PluginError, match=said):
        find("connector", f"{tmp_path / 'old.py'}:Part").load()


def test_what_is_unfinished_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(
        "from beni.interfaces import Connector, ConnectorConfig\n"
        "class Part(Connector):\n    beni_api = 1\n    Config = ConnectorConfig\n"
        "class Whole(Part):\n    def project(self, features): ...\n"
    )
    with pytest.raises(PluginError, match=r"half\.py:Part\) does not implement project$"):
        choose("connector", f"{tmp_path / 'half.py'}:Part")
    with pytest.raises(PluginError, match=r"half\.py:Whole\): ConnectorConfig does not implement out_grid$"):
        choose("connector", f"{tmp_path / 'half.py'}:Whole")
