"""The feature cache: the same training, encoders that do not run, and a folder that several runs may share."""

import fcntl
import json
import os
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from beni.config import RunConfig
from beni.data.document import DocumentImage
from beni.data.features import FeatureStore, divided, features_bytes, joined, write
from beni.data.loader import batches
from beni.errors import ConfigError, NotWritten
from beni.model.build import build
from beni.processes import processes
from beni.sample import ImageRef
from beni.testing.launch import run_ranks
from beni.training import features
from beni.training.checkpoint import Position
from beni.training.features import LOCK, USED, fingerprint, make_room
from beni.training.prepare import Run, prepare
from beni.training.run import train
from beni.types import Features, Grid
from beni_plugins.encoders.tiny import TinyEncoder
from tests.training.small import ENCODER, FUSIONS, SHAPES, small_run, text_file

FROZEN = ["connector", "fusion", "llm"]


def run_with(folder: Path, cache: Path | None, **changes: dict[str, Any]) -> Any:
    """A run whose encoders are frozen."""
    run = changes.pop("run", {}) | ({"feature_cache": str(cache)} if cache else {})
    optim = {"train": [part for part in FROZEN if part != "fusion" or changes.get("fusion", {}).get("name") == "xattn"]}
    return small_run(folder, optim=changes.pop("optim", {}) | optim, run=run, **changes)


def prepared(config: RunConfig) -> Run:
    """A run before its first step, its images encoded."""
    with processes(config.run) as procs:
        return prepare(config, procs, None, judging=True)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def conversations(folder: Path, *colours: str, side: tuple[int, int] = (20, 20), **fields: Any) -> Path:
    """LLaVA's JSON with a question about a picture of each colour; what is no colour is a picture all the same."""
    items = []
    for colour in colours:
        Image.new("RGB", side, colour if colour != "bad" else "black").save(folder / f"{colour}.png")
        talk = [{"from": "human", "value": "<image>\ncolour?"}, {"from": "gpt", "value": "red"}]
        items.append({"id": colour, "image": f"{colour}.png", "conversations": talk, **fields})
    (folder / "colours.json").write_text(json.dumps(items))
    return folder / "colours.json"


def assert_judged_alike(cached: dict[str, Any], plain: dict[str, Any], folder: Path) -> None:
    """With the images and blind, in answers and in losses."""
    for figure in ("val_loss", "eval_loss"):
        assert cached[figure] == pytest.approx(plain[figure], rel=1e-5)
    answers = [(folder / name / "predictions.jsonl").read_text() for name in ("cached", "plain")]
    assert answers[0] == answers[1] and answers[0].count("\n") > 10


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_is_the_same(tmp_path: Path, fusion: str) -> None:
    """With rows that show no image, too, in workers and without."""
    data: dict[str, Any] = {"data": [SHAPES, text_file(tmp_path)], "weights": [0.3, 0.7], "workers": 1}
    results = {}
    for name, cache in (("plain", None), ("cached", tmp_path / "cache")):
        results[name] = train(run_with(tmp_path / name, cache, data=data, **FUSIONS[fusion]))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert_judged_alike(results["cached"], results["plain"], tmp_path)
    plain, cached = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "cached"))
    assert plain.keys() == cached.keys(), "the saved model is whole"
    for name in plain:
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-3, atol=1e-5)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many crops an encoder saw, call by call."""
    seen: list[int] = []
    forward = TinyEncoder.forward

    def counted(self: TinyEncoder, pixels: torch.Tensor) -> Features:
        if not pixels.is_meta:
            seen.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(TinyEncoder, "forward", counted)
    return seen


def test_each_image_is_encoded_once_and_no_step_runs_an_encoder(tmp_path: Path, seen: list[int]) -> None:
    data = {"data": [SHAPES], "eval_limit": 0, "eval_data": []}
    first = prepared(run_with(tmp_path / "one", tmp_path / "cache", data=data)).cached
    assert first is not None and sum(seen) == first.encoded == first.images
    seen.clear()
    again = run_with(tmp_path / "two", tmp_path / "cache", data=data)
    with processes(again.run) as procs:
        run = prepare(again, procs, None, judging=True)
        rows = [row for _, step in batches(run.feed, Position().place, run.total, 0) for row in step]
        for row in rows:
            assert not row.visual.pixels and row.visual.features
            run.built.model(packed=row).loss.backward()
    assert run.cached is not None and (run.cached.images, run.cached.encoded) == (first.images, 0)
    assert not seen


def test_nothing_is_encoded_again_for_validation_and_judging(tmp_path: Path, seen: list[int]) -> None:
    """Where answers are generated, and where they are chosen."""
    chosen = conversations(tmp_path, "red", "blue", choices=["red", "blue"])
    data = {"data": [SHAPES], "eval_data": [SHAPES, f"llava:{chosen}?metric=choice"]}
    first = train(run_with(tmp_path / "run", tmp_path / "cache", data=data))["feature_cache"]
    assert sum(seen) == first["encoded"] == first["images"]
    seen.clear()
    again = train(run_with(tmp_path / "again", tmp_path / "cache", data=data))
    assert not seen and again["val_loss"] and again["eval_loss"] and again["evaluations"]


def test_a_result_tells_of_it_and_counts_no_encoder(tmp_path: Path) -> None:
    result = train(run_with(tmp_path / "run", tmp_path / "cache"))
    assert result["feature_cache"]["encoded"] == result["feature_cache"]["images"] > 0
    assert result["flops_per_sample_by_part"].keys() == {"connector", "llm", "head"}
    assert result["computed"][0]["features"] == "cached"
    assert train(run_with(tmp_path / "plain", None))["feature_cache"] is None


OTHER = dict(ENCODER, size=32)
SEVERAL: dict[str, Any] = {"encoders": {"main": ENCODER, "fine": OTHER}, "connector": {"name": "sva"}}
CROPS: dict[str, Any] = {"view": {"name": "pyramid"}, "connector": {"name": "dragonfly"}}


@pytest.mark.parametrize(("parts", "encoders"), [(SEVERAL, 2), (CROPS, 1)])
def test_several_encoders_and_many_crops(tmp_path: Path, parts: dict[str, Any], encoders: int) -> None:
    results = {}
    for name, cache in (("plain", None), ("cached", tmp_path / "cache")):
        results[name] = train(run_with(tmp_path / name, cache, **parts))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert_judged_alike(results["cached"], results["plain"], tmp_path)
    assert len([each for each in (tmp_path / "cache").iterdir() if each.is_dir()]) == encoders


def _train(out: str, cache: str, dtype: str = "fp32") -> None:
    train(run_with(Path(out), Path(cache) if cache else None, run={"dtype": dtype}))


def test_two_processes_train_on_what_the_first_encoded(tmp_path: Path) -> None:
    run_ranks(_train, 2, str(tmp_path / "two"), str(tmp_path / "cache"))
    _train(str(tmp_path / "one"), "")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_two_processes_in_bf16(tmp_path: Path) -> None:
    """FSDP asks units for gradients that no step has run."""
    run_ranks(_train, 2, str(tmp_path / "two"), str(tmp_path / "cache"), "bf16")
    _train(str(tmp_path / "one"), "", "bf16")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=5e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"train": ["encoder", "connector"]}}, "encoder.main is trained"),
        ({"data": {"augment": 0.1}}, "--augment changes every image"),
        ({"peft": {"peft_encoder": "lora"}}, "is trained"),
    ],
)
def test_what_would_change_features_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    optim = changes.pop("optim", {"train": ["connector"]})
    config = small_run(tmp_path / "run", optim=optim, run={"feature_cache": str(tmp_path / "cache")}, **changes)
    with pytest.raises(ConfigError, match=f"--feature-cache: .*{message}"):
        train(config)
    assert not (tmp_path / "cache").exists()


def test_broken_images_are_told_as_ever(tmp_path: Path) -> None:
    spec = f"llava:{conversations(tmp_path, 'red', 'bad')}"
    (tmp_path / "bad.png").write_bytes(b"no image")
    data = {"data": [spec], "eval_data": [spec]}
    result = train(run_with(tmp_path / "run", tmp_path / "cache", data=data, optim={"steps": 1}))
    assert [each["id"] for each in result["skipped"]] == ["bad"] and result["skipped_samples"] == 1
    told = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert told[0]["error"] == "" and "bad.png is not in any image format" in told[1]["error"]


def test_the_smallest_picture_is_one_like_any_other(tmp_path: Path) -> None:
    """Blank it is the picture that stands in rows without any."""
    spec = f"llava:{conversations(tmp_path, 'red', side=(1, 1))}"
    for view in ("single", "anyres"):
        data = {"data": [SHAPES, spec], "eval_data": [spec]}
        result = train(run_with(tmp_path / view, tmp_path / "cache", data=data, view={"name": view}))
        [figures] = result["evaluations"].values()
        assert figures["unreadable"] == figures["blind"]["unreadable"] == 0


def test_what_is_measured_and_not_judged_is_not_encoded(tmp_path: Path) -> None:
    config = run_with(tmp_path / "run", tmp_path / "cache")
    with processes(config.run) as procs:
        run = prepare(config, procs, None)
    assert run.cached is not None
    assert run.cached.images == 1 + len({ref.key for sample in run.rows.sources[0] for ref in sample.images})


def test_another_weight_precision_or_view_is_another_encoding(tmp_path: Path) -> None:
    config, padded = (run_with(tmp_path, None, view={"name": "single", "fit": fit}) for fit in ("squash", "pad"))
    built = build(config, ["x"])
    spec, encoder = built.composer.encoders["main"], built.model.encoders["main"]

    def printed(of: RunConfig = config, dtype: torch.dtype = torch.float32) -> str:
        return fingerprint(of.encoders["main"], of.view, spec, encoder, dtype)

    first = printed()
    assert first == printed() and first.startswith("tiny-")
    assert printed(dtype=torch.bfloat16) != first and printed(padded) != first
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert printed() != first


def shown(config: Any, ref: ImageRef) -> tuple[DocumentImage, Any]:
    composer = build(config, ["x"]).composer
    return DocumentImage(ref, 0, composer.layout(ref), ()), composer


def test_a_changed_file_or_another_cut_is_another_image(tmp_path: Path) -> None:
    store = FeatureStore({"main": tmp_path / "features"})
    file = tmp_path / "a.png"
    Image.new("RGB", (20, 40), "red").save(file)
    squashed, _ = shown(run_with(tmp_path, None), ImageRef(path=str(file)))
    cut, _ = shown(run_with(tmp_path, None, view={"name": "split"}), ImageRef(path=str(file)))
    made = Features(torch.randn(4, 3), (Grid(2, 2),), torch.randn(1, 2, 3))
    write(store.files(squashed)["main"], made)
    found = store.read(squashed)["main"]
    assert found.grids == made.grids and torch.equal(found.tokens_ND, made.tokens_ND)
    assert found.prefix_CPD is not None and torch.equal(found.prefix_CPD, made.prefix_CPD)  # type: ignore[arg-type]
    same = DocumentImage(ImageRef(path=os.path.relpath(file)), 7, squashed.layout, ())
    assert store.files(same) == store.files(squashed), "wherever one is, and wherever it stands in the text"
    before = store.files(squashed)
    assert store.files(cut) != before
    os.utime(file, ns=(1, 1))
    assert store.files(squashed) != before


def test_a_batch_is_put_together_from_images_and_back() -> None:
    parts = [
        Features(torch.randn(4, 3), (Grid(2, 2),), torch.randn(1, 2, 3)),
        Features(torch.randn(8, 3), (Grid(1, 2), Grid(2, 3)), torch.randn(2, 2, 3)),
    ]
    whole = joined(parts)
    assert whole.grids == (Grid(2, 2), Grid(1, 2), Grid(2, 3)) and len(whole.tokens_ND) == 12
    for before, after in zip(parts, divided(whole, [1, 2]), strict=True):
        assert before.grids == after.grids and torch.equal(before.tokens_ND, after.tokens_ND)
        assert after.prefix_CPD is not None and torch.equal(before.prefix_CPD, after.prefix_CPD)  # type: ignore[arg-type]


def test_room_is_known_before_anything_is_encoded(tmp_path: Path) -> None:
    run = prepared(run_with(tmp_path / "run", tmp_path / "cache"))
    assert run.cached is not None
    [folder] = run.cached.store.folders.values()
    spec = run.built.composer.encoders["main"]
    image = DocumentImage(run.rows.sources[0][0].images[0], 0, run.built.composer.view.bound({"main": spec}), ())
    sizes = {file.stat().st_size for file in folder.rglob("*.safetensors")}
    wanted = features_bytes(image, "main", spec, torch.float32)
    assert all(0 <= wanted - size < 256 for size in sizes)
    small = run_with(tmp_path / "small", tmp_path / "other", run={"feature_cache_gb": 1e-6})
    with pytest.raises(ConfigError, match=r"Allow more than --feature-cache-gb 1e-06"):
        train(small)
    assert not list((tmp_path / "other").rglob("*.safetensors"))


def collection(folder: Path, name: str, used: int, size: int = 100) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / "x.safetensors").write_bytes(b"x" * size)
    (made / USED).touch()
    os.utime(made / USED, (used, used))
    return made


def test_what_was_used_longest_ago_makes_room_and_what_is_in_use_does_not(tmp_path: Path) -> None:
    old, held, new = (collection(tmp_path, name, used) for used, name in enumerate(("old", "held", "new")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.safetensors").write_bytes(b"not of the cache")
    make_room(tmp_path, needed=100, limit=400)
    assert old.exists()
    with (held / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        make_room(tmp_path, needed=100, limit=300)
        assert (old.exists(), held.exists(), new.exists()) == (False, True, True)
        make_room(tmp_path, needed=100, limit=200)
        assert (held.exists(), new.exists()) == (True, False)
        with pytest.raises(ConfigError, match="train without"):
            make_room(tmp_path, needed=100, limit=100)
        assert held.exists()
    make_room(tmp_path, needed=100, limit=100)
    assert not held.exists() and (tmp_path / "mine").exists()


def test_a_run_holds_its_folders_while_it_lives(tmp_path: Path) -> None:
    run = prepared(run_with(tmp_path / "run", tmp_path / "cache"))
    assert run.cached is not None
    [folder] = run.cached.store.folders.values()

    def free() -> bool:
        with (folder / LOCK).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    assert not free()
    del run
    assert free()


@pytest.mark.parametrize(
    ("harm", "message"), [("unlink", "has no features in the cache"), ("cut", "holds no features .*delete it")]
)
def test_features_that_are_gone_or_damaged_are_told_of_their_samples(tmp_path: Path, harm: str, message: str) -> None:
    """As a broken image is, and by the data workers, too."""
    config = run_with(tmp_path / "run", tmp_path / "cache", data={"data": [SHAPES], "workers": 1})
    with processes(config.run) as procs:
        run = prepare(config, procs, None)
        sample = run.rows.sources[0][0]
        file = run.cached.store.files(shown(config, sample.images[0])[0])["main"]  # type: ignore[union-attr]
        if harm == "unlink":
            file.unlink()
        else:
            file.write_bytes(b"x")
        rows = [row for _, step in batches(run.feed, Position().place, run.rows.plan.steps(0), 1) for row in step]
    bad = dict(pair for row in rows for pair in row.stats.bad)
    assert sample.id in bad and all(re.search(message, why) for why in bad.values())
    assert sum(row.stats.samples for row in rows) + len(bad) == len(run.rows.sources[0])


def _write_little(out: str, cache: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with pytest.raises(NotWritten, match=r"features cannot be kept in .*File too large"):
        train(run_with(Path(out), Path(cache)))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    run_ranks(_write_little, 1, str(tmp_path / "run"), str(tmp_path / "cache"))


def test_an_encoder_that_was_written_anew_is_another_one(tmp_path: Path) -> None:
    """A class in a file has no version."""
    source = "from beni_plugins.encoders.tiny import TinyEncoder\nclass Mine(TinyEncoder):\n    pass\n"
    names = []
    for edited in (source, source + "    x = 1\n"):
        (tmp_path / "mine.py").write_text(edited)
        mine = dict(ENCODER, name=f"{tmp_path / 'mine.py'}:Mine")
        config = run_with(tmp_path / "run", None, encoders={"main": mine})
        built = build(config, ["x"])
        spec, encoder = built.composer.encoders["main"], built.model.encoders["main"]
        names.append(fingerprint(config.encoders["main"], config.view, spec, encoder, torch.float32))
    assert names[0] != names[1] and all("/" not in name for name in names)


def test_in_bf16_parameters_are_lowered_and_buffers_are_not(tmp_path: Path) -> None:
    config = run_with(tmp_path / "run", None, run={"dtype": "bf16"})
    encoder = build(config, ["x"]).model.encoders["main"]
    encoder.register_buffer("kept", torch.ones(3))
    computing = features.lowered(encoder, torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in computing.parameters()} == {torch.bfloat16} and computing.kept.dtype == torch.float32
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}, "the model's own stays as it is"


def test_bf16_trains_on_what_it_would_compute(tmp_path: Path) -> None:
    for name, cache in (("plain", None), ("cached", tmp_path / "cache")):
        train(run_with(tmp_path / name, cache, run={"dtype": "bf16"}))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=5e-3)


def test_of_several_encoders_only_the_new_one_runs(tmp_path: Path) -> None:
    first = prepared(run_with(tmp_path / "one", tmp_path / "cache", connector={"name": "sva"})).cached
    assert first is not None
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    both = prepared(run_with(tmp_path / "two", tmp_path / "cache", **SEVERAL)).cached
    assert both is not None and both.encoded == both.images == first.images == len(times)
    assert both.store.folders["main"] == first.store.folders["main"], "drawn from one seed"
    again = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(again) == 2 * len(times) and times.items() <= again.items()


def test_a_pre_pass_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = TinyEncoder.forward, []

    def once(self: TinyEncoder, pixels: torch.Tensor) -> Features:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return forward(self, pixels)

    batch = {"row_crops": 4}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TinyEncoder, "forward", once)
        train(run_with(tmp_path / "run", tmp_path / "cache", batch=batch))
    result = train(run_with(tmp_path / "again", tmp_path / "cache", batch=batch))
    assert result["feature_cache"]["encoded"] == result["feature_cache"]["images"] - 4


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritten, match=r"features cannot be kept in .*file"):
        train(run_with(tmp_path / "run", tmp_path / "file"))
