"""What every test may use. The environment is set before anything reads it."""

import os

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

import io
import json
import signal
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beni.sample import ImageRef

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as of what a script starts in the background; tests send it to processes, which would go on ignoring it
    signal.signal(signal.SIGINT, signal.default_int_handler)

MakePicture = Callable[..., ImageRef]


@pytest.fixture
def picture() -> MakePicture:
    """`picture(seed, size=(24, 16))`: a PNG of noise."""

    def make(seed: int = 0, size: tuple[int, int] = (24, 16)) -> ImageRef:
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "png")
        return ImageRef(data=file.getvalue())

    return make


def write_llava(folder: Path, items: Sequence[Any], name: str = "train.json") -> Path:
    """A LLaVA file of these items (`.jsonl`: one per line) beside red.png and blue.png; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in ("red", "blue"):
        Image.new("RGB", (12, 8), colour).save(folder / f"{colour}.png")
    path = folder / name
    lines = [json.dumps(item) for item in items]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]", encoding="utf-8")
    return path


def write_tar(path: Path, files: Mapping[str, Any]) -> Path:
    """A tar of these files, in this order; what is no bytes is written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def datasets_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps its cache in the test's folder, and draws no bars."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
