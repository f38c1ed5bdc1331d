"""`beni chat MODEL [MODEL2]`: a page to talk to saved models, and to see where they look."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

import tyro

from beni.chat.talker import open_talkers
from beni.cli.options import parse
from beni.config import RunOptions
from beni.errors import ConfigError, with_extra
from beni.processes import processes


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Talk to a saved model about pictures, or to two side by side, and see where they look: a page in a browser."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL [MODEL2]")]
    """Folders of saved models (RUN/model)."""
    port: int = 0
    """Of the page; 0: the first free one from 7860 on."""
    host: str = "127.0.0.1"
    """Address that is listened at: this machine alone; 0.0.0.0 lets everybody in who can reach it."""
    share: bool = False
    """Also open the page to everybody who knows its link, through Gradio's servers."""


def chat(arguments: Sequence[str], program: str) -> None:
    """Load the models, show the page until it is interrupted.

    Raises:
        ConfigError: Gradio is missing, a folder is not a saved model, or the port is taken.
    """
    options = parse(ChatOptions, arguments, program)
    if find_spec("gradio") is None:
        raise ConfigError(f"the page needs Gradio, which is not installed: {with_extra('demo')}")
    if not 0 <= options.port < 1 << 16:
        raise ConfigError(f"--port {options.port}: a port is a number up to 65535, 0 for any free one")
    _check_address(options.host, options.port)
    with processes(RunOptions()) as procs:
        talkers = open_talkers(list(options.models), procs.device)
        from beni.chat.page import serve  # imports Gradio

        serve(talkers, options.host, options.port, options.share)


def _check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at, before any model is loaded."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"--host {host} --port {port}: cannot be listened at ({why}): choose another") from error
