"""Specs: sources with options and splits; what is trained on, validated on, and judged."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from beni.data.spec import judged, parse, training, validation
from beni.errors import ConfigError, DataError, PluginError
from beni.sample import Sample
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
        (
            "shapes?template=plian",
            ConfigError,
            "data 'shapes.template=plian', template plian: neither one of plain,.*did you mean plain",
        ),
        ("shapes?template=.", ConfigError, "template .: neither one of"),
        ("shapes?loss_weight=-1", ConfigError, "data 'shapes.loss_weight=-1': loss_weight is '-1'; .*at least 0"),
        ("shapes?loss_weight=half", ConfigError, "loss_weight is 'half'; it must be a number"),
        ("shapes?loss_weight=", ConfigError, "loss_weight is ''; it must be a number"),
        ("shapes?loss_weight=nan", ConfigError, "loss_weight is 'nan'"),
        ("shapes?loss_weight=inf", ConfigError, "loss_weight is 'inf'"),
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


def test_a_template_is_for_everything_and_a_weight_for_training(file: str) -> None:
    spec = f"{SMALL}&template=plain&loss_weight=0.25"
    plain = parse(SMALL).samples("train")
    assert plain is not None
    [samples, other] = training([spec, file])
    assert len(samples) == len(plain)
    for one, same in zip(samples, plain, strict=True):
        assert (one.template, one.loss_weight) == ("plain", 0.25)
        assert dataclasses.replace(one, template="", loss_weight=1.0) == same
    assert (other[0].template, other[0].loss_weight) == ("", 1)
    shown = [*validation([spec]), *judged((), [spec]).values(), *judged([spec], ()).values()]
    assert {(sample.template, sample.loss_weight) for samples in shown for sample in samples} == {("plain", 1)}
    [fallback] = judged([f"{file}?template=vicuna&loss_weight=0"], ()).values()
    assert (fallback[0].template, fallback[0].loss_weight) == ("vicuna", 1)


def test_what_says_nothing_is_left_as_it_is(file: str) -> None:
    assert isinstance(training([file])[0], list)
    assert isinstance(training([f"{file}?template=&loss_weight=1.0"])[0], list)


def test_somebody_has_to_count(file: str) -> None:
    assert training([f"{file}?loss_weight=0", SMALL])
    with pytest.raises(ConfigError, match="every source has loss_weight 0"):
        training([f"{file}?loss_weight=0", f"{SMALL}&loss_weight=0.0"])


class Unread(Sequence[Sample]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        raise DataError(f"sample {index} is broken")


def test_nothing_is_read_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse(f"{SMALL}&loss_weight=2")
    monkeypatch.setattr(type(spec.source), "split", lambda self, name: Unread())
    assert len(spec.training()) == len(spec.samples("test") or []) == 5
    with pytest.raises(DataError, match="sample 3"):
        spec.training()[3]
