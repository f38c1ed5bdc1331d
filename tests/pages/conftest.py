"""What pages need to be run: an environment with the programs that they call, and a folder with what they name."""

import json
import os
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
from tests.pages.blocks import ROOT
from tests.pages.shell import SMALL, shell
from tests.pages.warm import client

PROGRAMS = ("beni", "python", "torchrun", "pip", "pytest")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")


@pytest.fixture(scope="session")
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
        "PYTEST_OPTIONS": "-p no:cacheprovider",
        "HOME": str(folder),
        "SMALL": json.dumps(SMALL),
    }
    variables = os.environ | variables
    command = [folder / "bin" / "python3", ROOT / "tests" / "pages" / "warm.py", folder / "socket"]
    with subprocess.Popen(command, env=variables) as server:
        while not (folder / "socket").exists():
            assert server.poll() is None, "the server of commands did not start"
            time.sleep(0.05)
        yield variables
        server.kill()


@pytest.fixture(scope="session")
def inputs(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages name: data of a few items, a picture, a small encoder, a run that has ended."""
    folder = tmp_path_factory.mktemp("inputs")
    seen = [
        {
            **{"id": str(n), "image": f"{colour}.png", "conversations": talk("<image>\nWhat colour?", colour)},
            "answers": [colour] * 10,
        }
        for n, colour in enumerate(["red", "blue"] * 8)
    ]
    said = [{"id": str(n), "conversations": talk("Who are you?", "a model")} for n in range(8)]
    for name, items in {"train": seen, "test": seen, "captions": seen, "chats": said, "talks": said}.items():
        write_llava(folder, items, f"{name}.json")
    red = (folder / "red.png").read_bytes()
    (folder / "picture.png").write_bytes(red)
    asked = {"conversations": talk("What colour?", "red")}
    for number in range(100):
        write_tar(folder / "shards" / f"{number:04}.tar", {"0.png": red, "0.json": asked})
    write_tar(
        folder / "cc_sbu" / "0.tar",
        {f"{n}.{end}": red if end == "png" else b"red" for n in "01" for end in ("png", "txt")},
    )
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
    shell("beni train --out runs/first", folder, environment)
    return folder


def talk(question: str, answer: str) -> list[dict[str, str]]:
    """A conversation of LLaVA's."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
