"""What commands print of results."""

import json
from typing import Any

import pytest

from beni.cli import commands
from beni.cli.printed import printed

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
    gone, broken = {"id": "a", "reason": "is gone"}, {"id": "b", "reason": "is broken"}
    short = ENDED | {"unusable_samples": 1, "unusable": [gone], "skipped_samples": 2, "skipped": [broken] * 2}
    assert told(short, monkeypatch, capsys).startswith("3 samples left out; 'a': is gone; report.html and result.json")
    one = ENDED | {"skipped_samples": 1, "unusable": [], "skipped": [broken]}
    assert told(one, monkeypatch, capsys) == "1 sample left out; 'b': is broken\n"
    unread = ENDED | {"evaluations": {"x": {"unreadable": 2}}}
    assert told(unread, monkeypatch, capsys).startswith("x: 2 items could not be read, and counted as wrong")
    unjudged = ENDED | {"accuracy": None, "evaluations": {}}
    assert told(unjudged, monkeypatch, capsys).startswith("nothing was judged: say with --eval-data")


def test_numbers_are_printed_as_people_read_them() -> None:
    result = {"accuracy": 0.9936000000000001, "interval": [0.1234567, 1.0], "by": {"s": 2166.264147864631}}
    found = printed(result | {"differ": 1.1920928955078125e-06, "items": 123456789, "none": None, "name": "0.12345678"})
    assert json.loads(found) == {
        **{"accuracy": 0.9936, "interval": [0.12346, 1.0], "by": {"s": 2166.3}},
        **{"differ": 1.1921e-06, "items": 123456789, "none": None, "name": "0.12345678"},
    }
