"""The gradient is the same however the rows of a step are shared: 1 process has all four, 2 two each, 4 one each."""

from pathlib import Path
from typing import Any

import pytest
import torch

from beni.config import RunOptions
from beni.processes import processes
from beni.testing.launch import run_ranks
from tests.distributed.test_parity import train_and_keep_gradients
from tests.model import small as parts
from tests.training.small import ENCODER, INLINE, SHAPES, XATTN, text_file

pytestmark = pytest.mark.slow
FUSIONS: dict[str, dict[str, dict[str, Any]]] = {
    "inline": INLINE,
    "xattn": XATTN,
    "mllama": XATTN | {"fusion": XATTN["fusion"] | {"variant": "mllama", "kv_heads": 1}},
    "sva": {
        "encoders": {"main": ENCODER, "coarse": ENCODER | {"width": 24, "merge": 2}},
        "connector": parts.SVA["connector"],
        "fusion": parts.SVA["fusion"],
    },
    "deepstack": {
        "encoders": {"main": ENCODER | {"layers": 2, "outputs": [0, 1, -1]}},
        "connector": {"name": "concat"},
        "fusion": {"name": "deepstack"},
        "llm": {"layers": 3},
    },
}


def _train_all(folder: str, data: dict[str, Any]) -> None:
    with processes(RunOptions(device="cpu")):  # one group for all
        for name, tables in FUSIONS.items():
            # rows of few tokens: some of the four have no image
            changes = {"data": data, "batch": {"rows": 4, "row_tokens": 100}, "optim": {"steps": 1}, **tables}
            train_and_keep_gradients(f"{folder}/{name}", changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Of what each number of processes made, once for all fusions."""
    root = tmp_path_factory.mktemp("sharing")
    data = {"data": [SHAPES, text_file(root, 200)], "eval_data": [SHAPES], "eval_limit": 1, "workers": 0}
    made = {world: root / str(world) for world in (1, 2, 4)}
    _train_all(str(made[1]), data)
    for world in (2, 4):
        run_ranks(_train_all, world, str(made[world]), data)
    return made


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_do_not_depend_on_who_has_which_row(folders: dict[int, Path], fusion: str, world: int) -> None:
    one, several = (torch.load(folders[n] / f"{fusion}.pt", weights_only=True) for n in (1, world))
    assert len(one) == len(several) and any(gradient.any() for gradient in one)
    for a, b in zip(one, several, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(a.abs().max()) + 1e-9)
