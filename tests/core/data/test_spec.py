"""Specs: sources with options and splits; what is trained on, validated on, and judged."""

from pathlib import Path

import pytest

from beni.data.spec import judged, parse, training, validation
from beni.errors import ConfigError, DataError, PluginError
from tests.conftest import write_llava

SMALL = "shapes?images=10"


@pytest.fixture
def file(tmp_path: Path) -> str:
    talk = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
    return f"llava:{write_llava(tmp_path, [{'conversations': talk}])}"


def test_options_and_splits() -> None:
    spec = parse(f"{SMALL}&size=80&split=test")
    assert spec.source.config.size == 80 and spec.split == "test"
    assert len({sample.images[0].data for sample in spec.samples("train") or []}) == 2  # a fifth of 10


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("shpes", PluginError, "did you mean shapes"),
        ("shapes?sise=3", ConfigError, "source 'shapes' has no option 'sise': did you mean 'size'"),
        ("shapes?size=large", ConfigError, "source 'shapes', option 'size'.*not 'large'"),
        ("shapes?size=80&size=90", ConfigError, "gives an option twice"),
        ("shapes?split=dev", DataError, "data 'shapes.split=dev' has no split 'dev'"),
        ("easy_vqa:file", ConfigError, "takes nothing behind a colon"),
    ],
)
def test_mistakes(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        parse(text).samples("train")


def test_training_and_validation(file: str) -> None:
    assert [len(samples) for samples in training([SMALL, file])][1] == 1
    assert len(validation([SMALL, file])) == 1  # a file has no validation split
    assert validation([f"{SMALL}&split=train"]) == []


def test_what_is_judged(file: str) -> None:
    assert list(judged((), [SMALL, file])) == [f"{SMALL}&split=test", f"{SMALL}&split=unseen"]
    assert list(judged((), [f"{SMALL}&split=train"])) == []
    assert list(judged([f"{SMALL}&split=val"], [SMALL])) == [f"{SMALL}&split=val"]
    assert list(judged([file], [SMALL])) == [file]
