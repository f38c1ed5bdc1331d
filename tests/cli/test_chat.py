"""`beni chat`: what is wrong is told in one line, before any model is loaded."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from beni.cli import chat
from beni.cli.main import main
from beni.errors import ConfigError


def run(line: str) -> None:
    chat.chat(line.split(), "beni chat")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio seems to be there."""
    monkeypatch.setattr(chat, "find_spec", lambda name: SimpleNamespace(name=name))


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(chat, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["chat", "runs/mine/model"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert (
        said == "error: the page needs Gradio, which is not installed: pip install -e '.[demo]' in the clone of beni\n"
    )


@pytest.mark.usefixtures("installed")
def test_models_that_are_none(tmp_path: Path) -> None:
    for line, message in {
        str(tmp_path): "MODEL .*: no saved model there",
        "a b c": "one model, or two side by side; these are 3",
        f"{tmp_path} {tmp_path}": "MODEL and MODEL2 are both",
        "": "one model, or two side by side; these are 0",
    }.items():
        with pytest.raises(ConfigError, match=message) as caught:
            run(line)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("installed")
def test_addresses_that_cannot_be_listened_at() -> None:
    with pytest.raises(ConfigError, match="--port 70000: a port is a number up to 65535"):
        run("a --port 70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--host 127.0.0.1 --port {port}: cannot be listened at"):
            run(f"a --port {port}")
    with pytest.raises(ConfigError, match=r"--host 203\.0\.113\.7 --port 0: cannot be listened at"):
        run("a --host 203.0.113.7")


def test_defaults_let_nobody_in() -> None:
    options = chat.ChatOptions(models=("a",))
    assert options.host == "127.0.0.1" and not options.share
