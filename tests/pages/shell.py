"""Runs the blocks of a page.

Commands are run as they are typed, by a shell, with less to do: `SMALL` gives every command few steps and few items.
What it replaces is parsed before (`warm.check`): a mistake in it fails like any other.
`…` in a command stands for other options, and there are none.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.pages.blocks import Block, blocks

SMALL: dict[str, dict[str, list[str]]] = {
    "train?": {"--data": ["shapes?images=60"]},
    "train": {
        "--steps": ["2"],
        "--eval-limit": ["4"],
        "--eval-every": ["1000"],
        "--row-tokens": ["512"],
        "--device": ["cpu"],
        "--workers": ["0"],
    },
    "sweep?": {"--data": ["shapes?images=60"]},
    "sweep": {"--steps": ["2"], "--eval-limit": ["4"], "--eval-every": ["1000"], "--workers": ["0"]},
    "evaluate": {"--limit": ["4"]},
    "throughput?": {"--data": ["shapes?images=60"]},
    "throughput": {"--warmup-steps": ["1"], "--windows": ["1"], "--window-steps": ["1"], "--row-tokens": ["512"]},
}
"""Options of beni's commands here; under `COMMAND?` those that they get unless the page has others (`warm.shrunk`)."""
RUN_BY = {"bash", "python"}
"""Languages that are run; others are shown."""


def run_page(page: Path, folder: Path, environment: dict[str, str]) -> list[str]:
    """Run a page's blocks; returns what those in bash printed.

    Blocks in Python continue each other, and are run together behind the others.
    """
    ran, program = [], ""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.mark == "file":
            (folder / block.said).write_text(block.text, encoding="utf-8")
        elif block.mark == "not run" or block.language not in RUN_BY:
            continue
        elif block.language == "python":
            program += block.text
        else:
            ran.append(shell(block.text, folder, environment | options_of(block), until_of(block)))
    if program:
        (folder / "page.py").write_text(program, encoding="utf-8")
        shell("python page.py", folder, environment)
    return ran


def options_of(block: Block) -> dict[str, str]:
    """The variables by which a block's commands get options of their own: `--name value …`."""
    if block.mark != "run":
        return {}
    options = [words.split() for words in f" {block.said}".split(" --")[1:]]
    return {"SMALL": json.dumps(SMALL | {"": {f"--{name}": values for name, *values in options}})}


def until_of(block: Block) -> str:
    """What the last command of a block prints when it has come so far that it may be ended."""
    return block.said if block.mark == "run until" else ""


def shell(command: str, folder: Path, environment: dict[str, str], until: str = "") -> str:
    """What a shell prints; it must end well, or is ended once it has printed what it is watched for."""
    with (
        (folder / "errors.txt").open("w+") as errors,
        subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if until and until in line:
                os.killpg(process.pid, signal.SIGTERM)
                return said
        code = process.wait()
        errors.seek(0)
        assert code == 0 and not until, f"{command}\n{said[-3000:]}{errors.read()[-3000:]}"
    return said


def runs(page: Path) -> bool:
    """Whether anything of a page is run."""
    return any(b.language in RUN_BY and b.mark not in ("file", "not run") for b in blocks(page.read_text("utf-8")))
