"""Packages of other people: installed by pip, listed, trained with, broken, and in each other's way."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.third_party.elsewhere import HERE, ROOT, Called, beni, pip_install, run

SMALL = ["--data", "shapes?images=8", "--steps", "2", "--eval-limit", "4", "--workers", "0", "--device", "cpu"]
Sites = dict[str, Path]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    """Where each package was installed."""
    return {name: pip_install(HERE / name, tmp_path_factory.mktemp(name)) for name in ("good", "broken", "colliding")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of `called` are."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def called(sites: Sites, runs: Path) -> Callable[[str], Called]:
    """What commands do where all three are installed."""
    commands = {
        "list": ["plugins"],
        "verify": ["plugins", "--verify"],
        "broken": ["train", "--connector", "broken", *SMALL],
        "ambiguous": ["train", "--connector", "strips", *SMALL],
        "ours": ["train", "--connector", "strips@strip-parts", *SMALL, "--out", str(runs / "ours")],
        "check": ["check", "connector", "strips"],
        "mlp": ["plugins", "show", "connector", "mlp"],
        "other mlp": ["plugins", "show", "connector", "mlp@colliding_parts"],
        "continued": ["train", "--config", str(runs / "ours" / "config.json"), "--out", str(runs / "again")],
    }
    done = dict(zip(commands, beni(list(commands.values()), list(sites.values())), strict=True))
    return done.__getitem__


def test_everything_is_listed_and_nothing_imported(called: Callable[[str], Called]) -> None:
    listed = called("list")
    assert (listed.code, listed.err, listed.imported) == (0, "", [])
    connectors = listed.out.split("connectors\n")[1].split("fusions\n")[0]
    rows = [tuple(re.split(r"\s{2,}", line.strip())) for line in connectors.splitlines()]
    assert [row for row in rows if "parts" in row[1]] == [
        ("broken", "broken-parts 0.3", "broken_parts:Broken"),
        ("mlp@colliding-parts", "colliding-parts 0.3", "colliding_parts:Other"),
        ("strips@colliding-parts", "colliding-parts 0.3", "colliding_parts:Other"),
        ("strips@strip-parts", "strip-parts 0.3", "strip_parts:Strips"),
    ], "names are listed as they have to be typed"
    assert ("mlp", "beni 0.1.0", "beni_plugins.connectors.mlp:Mlp") in rows


def test_verifying_says_why_a_part_is_broken_and_goes_on(called: Callable[[str], Called]) -> None:
    verified = called("verify")
    assert verified.code == 0
    [complaint] = [line for line in verified.out.splitlines() if "BROKEN" in line]
    assert re.search(
        r"broken_parts:Broken  BROKEN: connector 'broken' of broken-parts 0\.3 cannot be imported: "
        r"ModuleNotFoundError: No module named 'a_package_that_nobody_has'$",
        complaint,
    )
    assert "strip_parts" in verified.imported and "easy_vqa" in verified.out


def test_a_broken_package_fails_when_it_is_asked_for(called: Callable[[str], Called]) -> None:
    broken = called("broken")
    assert broken.code == 2 and broken.out == ""
    assert re.fullmatch(r"error: connector 'broken' of broken-parts 0\.3 cannot be imported: .*\n", broken.err)


def test_a_collision_names_both_packages(called: Callable[[str], Called]) -> None:
    for command in ("ambiguous", "check"):
        refused = called(command)
        assert refused.code == 2
        assert refused.err == (
            "error: connector 'strips' is offered by several packages: write strips@colliding-parts or "
            "strips@strip-parts\n"
        )


def test_a_package_can_be_named(called: Callable[[str], Called]) -> None:
    """In training, and when the run's configuration is read again."""
    for command in ("ours", "continued"):
        assert called(command).code == 0, called(command).err
        assert json.loads(called(command).out.splitlines()[-1])["steps"] == 2


def test_a_built_in_keeps_its_name(called: Callable[[str], Called]) -> None:
    assert called("mlp").out.startswith("connector mlp: beni_plugins.connectors.mlp:Mlp (beni ")
    assert called("other mlp").out.startswith("connector mlp: colliding_parts:Other (colliding-parts 0.3)")


def test_trains_saves_and_reloads_in_a_new_process(sites: Sites, tmp_path: Path) -> None:
    site, out = [sites["good"]], tmp_path / "run"
    command = ["--connector", "strips", "--connector.heads", "4", *SMALL, "--out", str(out)]
    run([sys.executable, str(ROOT / "experiments" / "run.py"), *command], site)
    table = json.loads((out / "config.json").read_text())["connector"]
    assert (table["name"], table["heads"]) == ("strips@strip-parts", 4)
    result = json.loads((out / "result.json").read_text())
    assert result["parameters"]["per_part"]["connector"] > 0
    judged = ["--model", str(out / "model"), "--data", "shapes?images=8", "--limit", "4"]
    again = json.loads(run([sys.executable, str(ROOT / "experiments" / "evaluate.py"), *judged], site))
    assert again["items"] == sum(part["items"] for part in result["evaluations"].values())
    assert again["accuracy"] == result["accuracy"]


LOAD = """
import json, sys, warnings
import beni
from transformers import AutoModelForImageTextToText, AutoProcessor, logging
logging.disable_progress_bar()
def told(auto, folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            auto.from_pretrained(folder)
        except beni.BeniError as error:
            return [type(error).__name__, str(error)]
    return sorted({f"{type(w.message).__name__}: {w.message}" for w in caught if "strips" in str(w.message)})
folder, site = sys.argv[1:]
lines = [told(AutoModelForImageTextToText, folder), told(AutoProcessor, folder)]
sys.path.insert(0, site)
print(json.dumps([*lines, told(AutoModelForImageTextToText, folder)]))
"""


def test_a_saved_model_says_which_package_it_lacks(
    called: Callable[[str], Called], runs: Path, sites: Sites, tmp_path: Path
) -> None:
    """And where another release of it is installed, in which the class has moved, that it may be another part."""
    assert called("ours").code == 0
    site = shutil.copytree(sites["good"], tmp_path / "site")
    (site / "strip_parts" / "moved.py").write_text("from strip_parts import Strips as Strips\n")
    [metadata], [entries] = site.glob("strip*/METADATA"), site.glob("strip*/entry_points.txt")
    metadata.write_text(metadata.read_text().replace("Version: 0.3", "Version: 0.4"))
    entries.write_text(entries.read_text().replace("strip_parts:", "strip_parts.moved:"))
    out = run([sys.executable, "-c", LOAD, str(runs / "ours" / "model"), str(site)])
    model, processor, moved = json.loads(out.splitlines()[-1])
    assert (
        model
        == processor
        == [
            "PluginError",
            "connector 'strips' comes with the package strip-parts, which is not installed here: it was saved with "
            "strip-parts 0.3 (entry point 'strips' of beni.connectors, class strip_parts:Strips); install it with pip "
            "install 'strip-parts==0.3', or get it from whoever saved this",
        ]
    )
    assert moved == [
        "OtherRelease: connector 'strips' was saved with strip-parts 0.3 (strip_parts:Strips), and is taken from "
        "strip-parts 0.4 (strip_parts.moved:Strips): it may compute something else; pip install 'strip-parts==0.3' "
        "brings back what it was"
    ]


def test_its_own_tests_pass(sites: Sites) -> None:
    """All but those that start processes, which tests of beni's own parts do."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not processes"]
    out = run([*command, "tests"], [sites["good"]], cwd=sites["good"].parent / "source")
    assert re.search(r"\d{2} passed", out) and "failed" not in out and "error" not in out
