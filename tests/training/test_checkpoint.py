"""Which checkpoints stay, and which weights are judged and saved."""

import errno
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from beni.config import RunConfig
from beni.errors import CheckpointError, ConfigError, NotWritten, Stopped
from beni.eval.held_out import HeldOut
from beni.testing.launch import run_ranks
from beni.training import callbacks, committed
from beni.training.metrics import Metrics
from beni.training.run import train
from beni.training.tracking import Tracker
from tests.training.small import small_run, text_file

LOSSES = (0.9, 0.4, 0.7, 0.5, 0.8, 0.6)
"""On the validation split, behind each of six steps."""


def run(out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """Six steps, each validated and saved."""
    losses = iter(LOSSES)
    monkeypatch.setattr(HeldOut, "figures", lambda *_: {"val_loss": next(losses)})
    changes = {"out": str(out), "eval_every": 1, "checkpoint_every": 1, **options}
    return train(small_run(out, optim={"steps": 6}, run=changes))


def kept(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))


def test_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for keep in (1, 3):
        run(tmp_path / str(keep), monkeypatch, keep=keep)
        assert kept(tmp_path / str(keep)) == list(range(7 - keep, 7))


def test_the_best_stays_and_is_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {select: run(tmp_path / select, monkeypatch, select=select) for select in ("last", "best")}
    assert {name: result["selected_step"] for name, result in results.items()} == {"last": 6, "best": 2}
    assert results["best"]["steps"] == 6
    assert kept(tmp_path / "last") == [5, 6] and kept(tmp_path / "best") == [2, 5, 6]
    saved = load_file(tmp_path / "best/model/model.safetensors")
    dcp_to_torch_save(tmp_path / "best/checkpoints/step-00000002", tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt", weights_only=True)["model"]
    assert saved and all(torch.equal(tensor, two[name]) for name, tensor in saved.items())


def test_the_best_so_far_is_remembered_by_a_continued_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", monkeypatch, select="best", keep=6)
    (tmp_path / "run/checkpoints/latest").write_text("step-00000003")
    monkeypatch.setattr(HeldOut, "figures", lambda *_: {"val_loss": 0.45})  # better than the third, not than the second
    changes = {"eval_every": 1, "select": "best", "keep": 6, "resume": "auto", "checkpoint_every": 1}
    result = train(small_run(tmp_path / "run", optim={"steps": 6}, run={"out": str(tmp_path / "run"), **changes}))
    assert result["selected_step"] == 2


def test_a_best_from_the_future_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", monkeypatch, select="best", keep=6)
    first = tmp_path / "run/checkpoints/step-00000001"
    monkeypatch.setattr(HeldOut, "figures", lambda *_: {"val_loss": 0.6})
    changes = {"eval_every": 3, "select": "best", "resume": str(first), "checkpoint_every": 1}
    result = train(small_run(tmp_path / "run", optim={"steps": 6}, run={"out": str(tmp_path / "run"), **changes}))
    assert result["selected_step"] == 3 and kept(tmp_path / "run") == [3, 5, 6]


def test_the_future_is_deleted_and_never_what_was_just_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", monkeypatch, keep=6)
    second = tmp_path / "run/checkpoints/step-00000002"
    changes = {"out": str(tmp_path / "run"), "resume": str(second), "checkpoint_every": 1, "eval_every": 100}
    with pytest.raises(Stopped):
        _stop_in(3, monkeypatch, small_run(tmp_path / "run", optim={"steps": 6}, run=changes))
    assert kept(tmp_path / "run") == [2, 3]
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000003"


def _stop_in(step: int, monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> None:
    """Train; SIGTERM comes while a step is validated, logged and saved."""
    original = callbacks.Callbacks.after_step

    def after_step(self: callbacks.Callbacks, report: Any) -> None:
        if report.position.steps == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, report)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Callbacks, "after_step", after_step)
        train(config)


@pytest.mark.parametrize("step", [2, 6])
def test_sigterm_while_the_best_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """In the last step, too: what is left, judging, is for the continuation."""
    losses = iter((0.9, 0.4, 0.7, 0.5, 0.8, 0.3))
    monkeypatch.setattr(HeldOut, "figures", lambda *_: {"val_loss": next(losses)})
    changes = {"out": str(tmp_path), "eval_every": 1, "checkpoint_every": 1, "select": "best"}
    with pytest.raises(Stopped, match=f"behind step {step} of 6"):
        _stop_in(step, monkeypatch, small_run(tmp_path, optim={"steps": 6}, run=changes))
    result = train(small_run(tmp_path, optim={"steps": 6}, run={**changes, "resume": "auto"}))
    assert result["steps"] == 6 and result["selected_step"] == 6
    assert (tmp_path / "checkpoints/best").read_text() == "step-00000006 0.3"


def test_the_best_needs_a_validation_split(tmp_path: Path) -> None:
    data = {"data": [text_file(tmp_path)], "eval_data": ["shapes?images=10"]}
    with pytest.raises(ConfigError, match="--select best compares losses on a validation split"):
        train(small_run(tmp_path / "run", data=data, run={"select": "best"}))
    assert not (tmp_path / "run").exists(), "the corrected command would be refused"


def test_a_checkpoint_of_an_earlier_version_is_told_as_such(tmp_path: Path) -> None:
    train(small_run(tmp_path / "run", run={"checkpoint_every": 2}))
    state = tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json"
    held = {name: value for name, value in json.loads(state.read_text()).items() if name != "checksum"}
    state.write_text(json.dumps(held | {"facts": held["facts"]["required"]}))
    with pytest.raises(CheckpointError, match="written by an earlier version of beni"):
        train(small_run(tmp_path / "run", run={"checkpoint_every": 2, "resume": "auto"}))


class FullDisk:
    """Every write of a checkpoint's data to the disk fails from the middle of the first file on, while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        original = filesystem.FileSystem.create_stream
        disk = self

        class Stream(io.FileIO):
            left = 2000

            def write(self, data: Any) -> int:
                self.left -= len(data)
                if disk.full and self.left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(data)

        @contextmanager
        def create_stream(self: Any, path: Path, mode: str) -> Iterator[Any]:
            if mode != "wb" or not path.name.endswith(".distcp"):
                with original(self, path, mode) as stream:
                    yield stream
                return
            with Stream(path, "wb") as stream:
                yield stream

        monkeypatch.setattr(filesystem.FileSystem, "create_stream", create_stream)


def fill_at(monkeypatch: pytest.MonkeyPatch, disk: FullDisk, *steps: int) -> None:
    """The disk is full behind these steps."""
    original = callbacks.Callbacks.after_step

    def after_step(self: callbacks.Callbacks, report: Any) -> None:
        disk.full = report.position.steps in steps
        original(self, report)

    monkeypatch.setattr(callbacks.Callbacks, "after_step", after_step)


def hidden(out: Path) -> list[str]:
    return [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")]


FULL = r"the checkpoint of step 3 cannot be written to .*: No space left on device .* MB free.; step-00000002 is whole"


def test_a_full_disk_ends_the_run_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(small_run(tmp_path / "whole", optim={"steps": 4}))
    with monkeypatch.context() as patch:
        fill_at(patch, FullDisk(patch), 3)
        with pytest.raises(NotWritten, match=f"{FULL}; make room, and --resume auto"):
            train(small_run(tmp_path / "run", run={"out": str(tmp_path / "run"), "checkpoint_every": 1}))
    assert kept(tmp_path / "run") == [1, 2] and hidden(tmp_path / "run") == []
    changes = {"out": str(tmp_path / "run"), "checkpoint_every": 1, "resume": "auto"}
    assert train(small_run(tmp_path / "run", run=changes))["eval_loss"] == whole["eval_loss"]


def test_what_a_full_disk_left_of_a_line_is_dropped(tmp_path: Path) -> None:
    train(small_run(tmp_path, run={"out": str(tmp_path), "checkpoint_every": 2}))
    lines = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 4, "ti')
    (tmp_path / "checkpoints" / ".step-00000003").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-00000002")
    train(small_run(tmp_path, run={"out": str(tmp_path), "checkpoint_every": 2, "resume": "auto"}))
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][-1] == 4
    assert hidden(tmp_path) == [], "what is left of a write that was interrupted is removed"


def test_ctrl_c_while_torch_writes_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(filesystem.FileSystemWriter, "write_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(small_run(tmp_path, run={"out": str(tmp_path), "on_checkpoint_error": "warn"}))


def test_a_run_may_go_on_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_at(monkeypatch, FullDisk(monkeypatch), 3)
    changes = {"out": str(tmp_path), "checkpoint_every": 1, "on_checkpoint_error": "warn"}
    assert train(small_run(tmp_path, run=changes))["failed_checkpoints"] == [3]
    assert kept(tmp_path) == [2, 4] and hidden(tmp_path) == []
    told = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    assert len(told) == 1 and re.search(f"{FULL}; the run goes on", told[0])
    [line] = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "checkpoint_failed" in line]
    assert json.loads(line)["step"] == 3


def test_the_last_checkpoint_does_not_keep_a_model_from_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_at(monkeypatch, FullDisk(monkeypatch), 4)
    assert train(small_run(tmp_path))["failed_checkpoints"] == [4]
    assert (tmp_path / "model/model.safetensors").is_file()


def test_a_loss_that_could_not_be_kept_is_not_the_lowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_at(monkeypatch, FullDisk(monkeypatch), 2)
    result = run(tmp_path, monkeypatch, select="best", on_checkpoint_error="warn")
    assert (result["failed_checkpoints"], result["selected_step"]) == ([2], 4)


def test_a_run_that_was_to_stop_does_not_say_that_it_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch)
    monkeypatch.setattr("beni.training.run.stop_noted", lambda _: nullcontext(lambda: True))
    with pytest.raises(NotWritten, match=r"step 0 cannot be written .*; there is none before it"):
        train(small_run(tmp_path, run={"out": str(tmp_path), "on_checkpoint_error": "warn"}))


def _train_on_a_full_disk(out: str, rank: str) -> None:
    patch = pytest.MonkeyPatch()
    if os.environ["RANK"] == rank:
        fill_at(patch, FullDisk(patch), 3)
    changes = {"out": out, "checkpoint_every": 1, "on_checkpoint_error": "warn"}
    result = train(small_run(Path(out), run=changes))
    assert result["failed_checkpoints"] == [3]


def test_one_of_two_processes_has_no_room(tmp_path: Path) -> None:
    run_ranks(_train_on_a_full_disk, 2, str(tmp_path), "1")
    assert kept(tmp_path) == [2, 4] and hidden(tmp_path) == []


def test_lines_of_metrics_wait_for_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path, steps=3, done=0, is_main=True, tracker=Tracker())
    real = metrics.file
    metrics.log(1, loss=1.0)
    assert real is not None
    room = 5

    class Full:
        name = "metrics.jsonl"

        def write(self, data: bytes) -> int:
            nonlocal room
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written, room = real.write(data[:room]), 0  # type: ignore[union-attr]
            return written

    metrics.file = Full()  # type: ignore[assignment]
    metrics.log(2, loss=2.0)
    metrics.log(3, loss=3.0)
    metrics.file = real
    metrics.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert capsys.readouterr().err.count("warning: metrics.jsonl cannot be written: No space left on device") == 1


def test_results_without_room_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("beni.training.run.write_json", lambda path, value: path.name == "config.json" or full())
    with pytest.raises(NotWritten, match=r"the results cannot be written .*: No space left.*step-00000004 is whole"):
        train(small_run(tmp_path))


def test_whatever_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    """Every bit of the state counts; of the files, some at the beginning, in the middle and at the end are tried."""
    train(small_run(tmp_path / "run"))
    folder = tmp_path / "run/checkpoints"
    path = folder / (folder / "latest").read_text()
    committed.verify(path)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        places = range(len(whole)) if file.name == committed.STATE else (0, len(whole) // 2, len(whole) - 1)
        damaged = [whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in places]
        for content in (*damaged, whole[: len(whole) // 2], b"", whole + b"x"):
            file.write_bytes(content)
            with pytest.raises(CheckpointError, match=re.escape(file.name)):
                committed.verify(path)
        file.unlink()
        with pytest.raises(CheckpointError, match=f"{re.escape(file.name)} is missing"):
            committed.verify(path)
        file.write_bytes(whole)
    committed.verify(path)


def test_only_a_checkpoint_that_is_whole_is_offered(tmp_path: Path) -> None:
    changes = {"out": str(tmp_path), "checkpoint_every": 1, "keep": 4}
    train(small_run(tmp_path, run=changes))
    folder = tmp_path / "checkpoints"
    for step, offered in ((4, "step-00000003"), (3, "step-00000002"), (2, "step-00000001"), (1, "")):
        shard = next((folder / f"step-{step:08d}").glob("*.distcp"))
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=rf"step-00000004 is damaged: {shard.name} has changed") as caught:
            train(small_run(tmp_path, run={**changes, "resume": "auto"}))
        hint = f"; continue from {offered} with --resume {folder / offered}" if offered else "has changed"
        assert str(caught.value).endswith(hint)


@pytest.mark.parametrize("text", ["", "step-0000000", "step-00000003", "\0", "stfp-00000004"])
def test_a_damaged_pointer_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    (tmp_path / "checkpoints/latest").write_text(text)
    with pytest.raises(CheckpointError, match=r"latest is damaged.*--resume .*step-00000004"):
        train(small_run(tmp_path, run={"out": str(tmp_path), "resume": "auto"}))


def test_a_run_whose_reader_is_gone_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars and warnings go nowhere; lines of metrics are written."""
    gone, broken = os.pipe()
    with os.fdopen(broken, "w", buffering=1) as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        monkeypatch.setattr("beni.progress.LOGGED_S", 0.0)
        metrics = Metrics(tmp_path, steps=3, done=0, is_main=True, tracker=Tracker())
        os.close(gone)
        metrics.tell("warning: nobody reads this")
        metrics.advance(loss="1")
        metrics.log(1, loss=1.0)
        metrics.close()
        assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1
        monkeypatch.undo()
        with suppress(BrokenPipeError):
            stderr.close()
