"""Packages installed away from this environment, and processes that see them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CALLS = """
import contextlib, io, json, sys
from beni.cli.main import main
for words in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code
    imported = sorted({name.split(".")[0] for name in sys.modules} & {"strip_parts", "broken_parts", "colliding_parts"})
    print("CALLED " + json.dumps([code, out.getvalue(), err.getvalue(), imported]), file=sys.__stdout__)
"""


@dataclass(frozen=True, slots=True)
class Called:
    """What a command did, and which of the packages here had been imported by its end."""

    code: int
    out: str
    err: str
    imported: list[str]


def pip_install(package: Path, target: Path) -> Path:
    """Install a package without network and without touching this environment; returns what to put on PYTHONPATH."""
    source = shutil.copytree(package, target / "source")  # building leaves files behind
    site = target / "site"
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", "install", *offline, "--target", str(site), str(source)])
    return site


def beni(commands: Sequence[Sequence[str]], sites: Sequence[Path]) -> list[Called]:
    """Run commands one after another in one process that sees these sites."""
    out = run([sys.executable, "-c", CALLS, json.dumps(commands)], sites)
    return [
        Called(*json.loads(line.removeprefix("CALLED "))) for line in out.splitlines() if line.startswith("CALLED ")
    ]


def run(command: Sequence[str], sites: Sequence[Path] = (), cwd: Path | None = None) -> str:
    """What a process prints; raises with what it complained of."""
    paths = [*map(str, sites), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
