"""Pages do what they say: their files are written and their commands run, in order, page by page.

Commands are run as they are typed, by a shell, with less to do: `SMALL` gives every command few steps and few items.
`…` in a command stands for other options, and there are none.
"""

import json
import os
import shutil
import signal
import site
import subprocess
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset, Image
from transformers import ViTConfig

from tests.conftest import write_llava, write_tar
from tests.pages.blocks import PAGES, ROOT, Block, blocks
from tests.pages.warm import client

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
    "throughput": {"--warmup": ["1"], "--windows": ["1"], "--window-steps": ["1"], "--row-tokens": ["512"]},
}
"""Options of beni's commands here; under `COMMAND?` those that they get unless the page has others."""
PROGRAMS = ("beni", "python", "torchrun", "pip", "pytest")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
RUN_BY = {"bash", "python"}
"""Languages that are run; others are shown."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables of an environment of its own that sees this one's packages and can install more, without network."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "parent.pth").write_text("\n".join(lines) + "\n")
    for name in PROGRAMS:
        client(name, folder / "socket", folder / "bin")
    given = os.environ.get("PYTHONPATH", "")
    variables = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in given.split(os.pathsep) if path),
        "PIP_OPTIONS": " ".join(OFFLINE),
        "HF_HOME": str(folder / "huggingface"),
        "SMALL": json.dumps(SMALL),
        "EXTRA": "[]",
    }
    variables = os.environ | variables
    command = [folder / "bin" / "python3", ROOT / "tests" / "pages" / "warm.py", folder / "socket"]
    with subprocess.Popen(command, env=variables) as server:
        while not (folder / "socket").exists():
            assert server.poll() is None, "the server of commands did not start"
            time.sleep(0.05)
        yield variables
        server.kill()


def shell(command: str, folder: Path, environment: dict[str, str], until: str = "") -> str:
    """What a shell prints; it must end well, or is ended once it has printed what it is watched for."""
    with (folder / "errors.txt").open("w+") as errors, subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    ) as process:
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


@pytest.fixture(scope="module")
def inputs(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages name: data of a few items, a picture, a small encoder, a run that has ended."""
    folder = tmp_path_factory.mktemp("inputs")
    seen = [
        {"id": str(n), "image": f"{colour}.png", "conversations": talk("<image>\nWhat colour?", colour)}
        for n, colour in enumerate(["red", "blue"] * 8)
    ]
    said = [{"id": str(n), "conversations": talk("Who are you?", "a model")} for n in range(8)]
    for name, items in {"train": seen, "test": seen, "captions": seen, "chats": said, "talks": said}.items():
        write_llava(folder, items, f"{name}.json")
    red = (folder / "red.png").read_bytes()
    (folder / "picture.png").write_bytes(red)
    for tar in [*(f"shards/{n:04}" for n in range(100)), "cc_sbu/0000"]:
        write_tar(folder / f"{tar}.tar", {"0.png": red, "0.json": {"conversations": talk("What colour?", "red")}, "1.png": red, "1.txt": b"red"})
    rows = {"picture": [{"bytes": red}] * 16, "asked": ["What colour?"] * 16, "said": ["red"] * 16}
    table = Dataset.from_dict(rows).cast_column("picture", Image())
    table.to_parquet(folder / "rows.parquet")
    for name in ("ID", "ORG/SET"):
        (folder / name).mkdir(parents=True)
        renamed = table.rename_columns({"picture": "image", "asked": "question", "said": "answer"})
        renamed.to_parquet(folder / name / "train.parquet")
    for name in ("experiments", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    ).save_pretrained(folder / "small-vit")
    prepared = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "small-vit" / "preprocessor_config.json").write_text(json.dumps(prepared))
    shell("beni train --encoder hf:small-vit --encoder.weights none --out runs/mine", folder, environment)
    for name in ("a", "b", "first"):
        (folder / "runs" / name).symlink_to("mine")
    return folder


def talk(question: str, answer: str) -> list[dict[str, str]]:
    """A conversation of LLaVA's."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


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
    """The variables by which a block's commands get options of their own."""
    return {"EXTRA": json.dumps(block.said.split())} if block.mark == "run" else {}


def until_of(block: Block) -> str:
    """What the last command of a block prints when it has come so far that it may be ended."""
    return block.said if block.mark == "run until" else ""


def runs(page: Path) -> bool:
    """Whether anything of a page is run."""
    return any(b.language in RUN_BY and b.mark not in ("file", "not run") for b in blocks(page.read_text("utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES if runs(page)])
def test_a_page_runs(page: Path, inputs: Path, environment: dict[str, str], tmp_path: Path) -> None:
    folder = shutil.copytree(inputs, tmp_path / "here", symlinks=True)
    run_page(page, folder, environment)
