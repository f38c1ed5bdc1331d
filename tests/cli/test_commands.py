"""What commands print behind a training."""

from typing import Any

import pytest

from beni.cli import commands

ENDED: dict[str, Any] = {"accuracy": 0.5, "steps": 2, "evaluations": {"x": {}}, "unusable_samples": 0}


def told(result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(commands, "run_training", lambda _: result)
    commands.train([], "run.py")
    out, err = capsys.readouterr()
    assert '"steps": 2' in out
    return err


def test_what_was_left_out_or_not_judged_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(ENDED, monkeypatch, capsys) == ""
    short = ENDED | {"unusable_samples": 1, "skipped_samples": 2}
    assert told(short, monkeypatch, capsys).startswith("3 samples were left out")
    unjudged = ENDED | {"accuracy": None, "evaluations": {}}
    assert told(unjudged, monkeypatch, capsys).startswith("nothing was judged: say with --eval-data")
