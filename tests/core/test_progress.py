"""Progress bars are drawn of what takes long: moving on a terminal, seldom in a log."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import ViTConfig, ViTModel
from transformers.utils import logging

from beni import progress


class Screen(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def hooked() -> Iterator[None]:
    """Bars of Transformers are like ours, until the test ends."""
    before = logging.set_tqdm_hook(None)
    progress.transformers_bars()
    yield
    logging.set_tqdm_hook(before)


def drawn(monkeypatch: pytest.MonkeyPatch, screen: io.StringIO, folder: Path) -> str:
    """What bars of ours and of Transformers write there."""
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress.bar(range(3), desc="ours")) == [0, 1, 2]
    with progress.bar(total=2, desc="told") as told:
        told.update(2)
    assert list(progress.bar(range(3), shown=False, desc="another process's")) == [0, 1, 2]
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        folder
    )
    ViTModel.from_pretrained(folder)
    return screen.getvalue()


@pytest.mark.usefixtures("hooked")
def test_bars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert drawn(monkeypatch, Screen(), tmp_path) == "", "it has not taken long"
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    assert drawn(monkeypatch, io.StringIO(), tmp_path) == "", "in a log even this is no reason"
    seen = drawn(monkeypatch, Screen(), tmp_path)
    assert {"ours: 100%", "told: 100%", "Loading weights: 100%", "Writing model shards: 100%"} <= {
        line.partition("%")[0] + "%" for line in seen.replace("\r", "\n").splitlines()
    }
    assert "another" not in seen


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on a second with each step."""
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    with progress.bar(total=100, unit="step") as told:
        told._time = lambda: now[0]
        told.start_t = told.last_print_t = 0.0
        for _ in range(100):
            now[0] += 1
            told.update()
    lines = [line for line in log.getvalue().replace("\r", "\n").splitlines() if line.strip()]
    assert 3 <= len(lines) <= 5 and "100/100" in lines[-1]
