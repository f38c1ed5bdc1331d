"""How pages are read, and what is changed in their commands before they are run."""

import os
import re
from pathlib import Path

import pytest

from beni.errors import BeniError
from tests.pages.blocks import PAGES, Block, blocks
from tests.pages.shell import SMALL, options_of, shell, until_of
from tests.pages.warm import check, shrunk

PAGE = """
<!-- file: my/part.py -->
```python
x = 1
```

```bash
beni train
```
<!-- not run: no hub -->
```bash
beni train --llm a/b
```
"""


def test_blocks_and_their_marks() -> None:
    assert blocks(PAGE) == [
        Block("python", "x = 1\n", 3, "file", "my/part.py"),
        Block("bash", "beni train\n", 7),
        Block("bash", "beni train --llm a/b\n", 11, "not run", "no hub"),
    ]


def test_what_is_typed_is_run_with_less_to_do() -> None:
    small = {"train": {"--steps": ["2"]}, "train?": {"--data": ["shapes"]}}
    for typed, run in {
        "beni train": "beni train --steps 2 --data shapes",
        "beni train --steps 20000 --data a b": "beni train --steps 2 --data a b",
        "python experiments/run.py … --data a --peft lora": "python experiments/run.py --data a --peft lora --steps 2",
        "torchrun --nproc-per-node 2 experiments/run.py --data a": "torchrun --nproc-per-node 2 experiments/run.py "
        "--data a --steps 2",
        "beni plugins": "beni plugins",
        "pip install x": "pip install x",
    }.items():
        assert shrunk(typed.split(), small) == run.split()


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [
        ("beni train --steps abc", "--steps abc: not a whole number"),
        ("torchrun --nproc-per-node 2 experiments/run.py … --row-tokens many", "--row-tokens many: not a whole number"),
        ("python experiments/run.py --stepz 3", "unknown option --stepz: did you mean --steps"),
        ("python experiments/evaluate.py --model m --limit few", "--limit few: not a whole number"),
        ("beni sweep --connector mlp perceiver --steps 10 2O", "--steps 2O: not a whole number"),
        ("python benchmarks/throughput.py --warmup-steps long", "--warmup-steps long: not a whole number"),
        ("beni throughput --row-tokens many", "--row-tokens many: not a whole number"),
    ],
)
def test_what_is_replaced_must_be_right_as_it_is_typed(typed: str, wrong: str) -> None:
    with pytest.raises(BeniError, match=f"^{wrong}"):
        check(typed.split())


def test_what_is_right_is_not_refused() -> None:
    for typed in (
        "beni train … --steps 20000 --connector perceiver --connector.num-latents 8",
        "beni sweep --connector mlp perceiver --lr 1e-4 2e-4 --tune-lr 1e-4 --steps 10",
        "beni throughput --all --steps 3",
        "beni plugins --nonsense",
        "pip install x",
    ):
        check(typed.split())


def test_a_block_has_options_of_its_own() -> None:
    block = Block("bash", "", 1, "run", "--llm tiny --steps 3 4")
    assert options_of(Block("bash", "", 1)) == {} and until_of(block) == ""
    assert '"": {"--llm": ["tiny"], "--steps": ["3", "4"]}' in options_of(block)["SMALL"]
    assert shrunk(["beni", "train", "--llm", "x"], {"train": {}, "": {"--llm": ["tiny"]}})[2:] == ["--llm", "tiny"]
    assert set(SMALL) >= {"train", "sweep", "evaluate", "throughput"}


def test_a_command_that_fails_is_not_passed_over(tmp_path: Path) -> None:
    here = dict(os.environ)
    assert shell("echo yes; sleep 600", tmp_path, here, until="yes") == "yes\n"
    with pytest.raises(AssertionError, match="not there"):
        shell("echo fine; ls 'not there' | cat\necho later", tmp_path, here)
    with pytest.raises(AssertionError):
        shell("echo no", tmp_path, here, until="yes")


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_every_comment_above_a_block_is_understood(page: Path) -> None:
    """One that is misspelt would be passed over, and the block run, or not written."""
    text = page.read_text(encoding="utf-8")
    comments = len(re.findall(r"^<!--[^\n]*-->\n+```", text, re.MULTILINE))
    found = blocks(text)
    assert comments == sum(block.mark != "" for block in found)
    assert text.count("\n```") == 2 * len(found), "a fence that is not closed, or is indented"
    assert {block.language for block in found} <= {"", "bash", "json", "python", "toml"}
