"""Entry point of the command line: dispatches, and turns a user's mistake into one line and exit code 2."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from beni.errors import BeniError

COMMANDS = {
    "train": "train, judge and save a model",
    "evaluate": "judge a saved model on data",
    "generate": "answer a question about images with a saved model",
    "plugins": "list installed parts, or show one",
}


SPINS = "10000"
"""Turns an idle OpenMP thread waits before it sleeps. The default is to wait for ever, which takes the core away from
data workers: on two busy cores steps were ten times slower; alone they are 4 % slower with this."""


def main(arguments: Sequence[str] | None = None) -> None:
    """`beni COMMAND …`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: beni COMMAND [OPTIONS]\n")
        print("\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items()))
        print("\nbeni COMMAND --help shows the options.")
        return
    if words[0] not in COMMANDS:
        _fail(f"there is no command '{words[0]}': choose one of {', '.join(COMMANDS)}")
    run(words[0], words[1:], program=f"beni {words[0]}")


def run(command: str, arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run one command; scripts in `experiments/` come in here."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    from beni.cli import commands  # torch and transformers are imported only when a command runs

    table: dict[str, Callable[[Sequence[str], str], None]] = {
        "train": commands.train,
        "evaluate": commands.evaluate,
        "generate": commands.generate,
        "plugins": commands.plugins,
    }
    try:
        table[command](list(sys.argv[1:] if arguments is None else arguments), program or Path(sys.argv[0]).name)
    except BeniError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted", code=130)


def _fail(message: str, code: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)
