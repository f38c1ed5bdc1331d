"""Entry point of the command line: dispatches, and turns a user's mistake into one line and exit code 2."""

import multiprocessing
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from beni.errors import BeniError, LostProcess

COMMANDS = {
    "train": "train, judge and save a model",
    "evaluate": "judge a saved model on data",
    "generate": "answer a question about images with a saved model",
    "chat": "a page to talk to one or two saved models, and to see where they look",
    "export": "write a saved model as a class of Transformers' own",
    "sweep": "train all combinations of options, and compare them",
    "throughput": "measure what combinations of parts cost to train",
    "plugins": "list installed parts, show one, or say which are broken",
    "check": "run the conformance suite of a part",
    "new-plugin": "write a package with a part of your own",
}


SIGPIPE = 128 + 13
"""What a shell sees of a program whose reader left."""


def main(arguments: Sequence[str] | None = None) -> None:
    """`beni COMMAND …`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        with _while_read():
            print("usage: beni COMMAND [OPTIONS]\n")
            print("\n".join(f"  {name:<11} {what}" for name, what in COMMANDS.items()))
            print("\nbeni COMMAND --help shows the options, beni --version the version.")
        return
    if words == ["--version"]:
        print(f"beni {version('beni')}")
        return
    if words[0] not in COMMANDS:
        _fail(f"there is no command '{words[0]}': choose one of {', '.join(COMMANDS)}")
    run(words[0], words[1:], program=f"beni {words[0]}")


def run(command: str, arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run one command; scripts in `experiments/` come in here."""
    from beni.cli import (  # gradio, jinja and the like are imported only when a command runs
        chat,
        check,
        commands,
        export,
        new_plugin,
        sweep,
        throughput,
    )
    from beni.progress import transformers_bars

    transformers_bars()

    table: dict[str, Callable[[Sequence[str], str], None]] = {
        "train": commands.train,
        "evaluate": commands.evaluate,
        "generate": commands.generate,
        "chat": chat.chat,
        "export": export.export,
        "sweep": sweep.sweep,
        "throughput": throughput.throughput,
        "plugins": commands.plugins,
        "check": check.check,
        "new-plugin": new_plugin.new_plugin,
    }
    try:
        with _while_read():
            table[command](list(sys.argv[1:] if arguments is None else arguments), program or Path(sys.argv[0]).name)
    except LostProcess as error:
        _end_at_once(str(error), error.exit_code)
    except BeniError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", code=130)


@contextmanager
def _while_read() -> Iterator[None]:
    """A reader of our output who has seen enough, as in `beni plugins | head`, ends the program without a word."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            raise  # some other pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(SIGPIPE) from None


def _fail(message: str, code: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def _end_at_once(message: str, code: int) -> None:
    """Without waiting for anything: what is still in touch with a lost process may keep or abort the interpreter."""
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)
