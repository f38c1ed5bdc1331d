"""easy-VQA: the official counts, and validation images that training has not seen."""

from collections import Counter

from beni.data.images import image_size
from beni_plugins.sources.easy_vqa import EasyVqa, EasyVqaConfig


def test_splits() -> None:
    source = EasyVqa(EasyVqaConfig())
    splits = {name: source.split(name) for name in ("train", "val", "test")}
    train, val, test = (samples or [] for samples in splits.values())
    assert (len(train), len(val), len(test)) == (36_631, 1_944, 9_673)
    images = {name: {sample.images[0].path for sample in samples or []} for name, samples in splits.items()}
    assert [len(paths) for paths in images.values()] == [3_800, 200, 1_000]
    assert not images["train"] & images["val"] and not (images["train"] | images["val"]) & images["test"]
    assert len({sample.id for sample in [*train, *val, *test]}) == 48_248
    assert len({sample.answer for sample in train}) == 13 == len({sample.answer for sample in test})
    assert set(Counter(sample.tags["type"] for sample in test)) == {"yes/no", "colour", "shape"}
    assert image_size(train[0].images[0]) == (64, 64)
    assert source.split("dev") is None
