"""A Python that has imported beni already and runs each command in a fork of itself: a page has many commands, and
importing PyTorch and Transformers takes longer than most of them.

`python warm.py SOCKET` serves. What `client` writes is a program that hands its name, arguments, folder, environment
and standard streams over, and ends as the command ends.
"""

import atexit
import json
import os
import runpy
import site
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
channel = socket.socket(socket.AF_UNIX)
channel.connect({address!r})
words = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(channel, [len(words).to_bytes(8, "big")], [0, 1, 2])
channel.sendall(words)
pid = int.from_bytes(channel.recv(8), "big")
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
sys.exit(int.from_bytes(channel.recv(1) or b"\\x01", "big"))  # one that was killed sends nothing
"""


def client(name: str, address: Path, bin: Path) -> None:
    """Write the program `bin/name`, which the server at this address runs."""
    script = bin / name
    script.unlink(missing_ok=True)
    script.write_text(CLIENT.format(python=Path(sys.executable).resolve(), address=str(address), name=name))
    script.chmod(0o755)


def shrunk(words: list[str], small: dict[str, dict[str, list[str]]]) -> list[str]:
    """A command line as it is run here: `…` stands for other options and is left out, and options that decide how
    long it takes have other values.

    Args:
        words: the program and what is typed behind it.
        small: options by command (train, sweep …) that it always gets, in the place of those that are typed; under
            `COMMAND?` those that it gets unless they are typed; under an empty name those of every command.
    """
    words = [word for word in words if word != "…"]
    command = _command(words)
    if not command:
        return words
    always = small.get(command, {}) | small.get("", {})
    unless = {option: values for option, values in small.get(f"{command}?", {}).items() if option not in words}
    for option, values in {**always, **unless}.items():
        if option in words:
            at = words.index(option) + 1
            words[at : next((i for i in range(at, len(words)) if words[i].startswith("--")), len(words))] = values
        else:
            words += [option, *values]
    return words


def check(words: list[str]) -> None:
    """Parse a command line as it is typed: what is replaced in it before it is run must be right, too.

    Raises:
        BeniError: an option that there is not, or a value that it does not take.
    """
    from beni.cli.commands import EvaluateOptions
    from beni.cli.grid import SWEEP, combinations
    from beni.cli.options import parse, parse_run, parse_stages, split_own
    from beni.cli.sweep import SweepOptions
    from beni.cli.throughput import ThroughputOptions

    command, typed = _command(words), _typed(words)
    if command == "train":
        parse_stages(typed, command)
    elif command == "evaluate":
        parse(EvaluateOptions, typed, command)
    elif command in ("sweep", "throughput"):
        cls = {"sweep": SweepOptions, "throughput": ThroughputOptions}[command]
        own, rest = split_own(cls, typed)
        options = parse(cls, own, command)
        for each in combinations(rest, every=getattr(options, "all", False)):
            parse_run(each.words, command, others=[SWEEP])


def _command(words: list[str]) -> str:
    """Which of beni's commands a line runs: `beni train`, `python experiments/run.py`, `torchrun … run.py`."""
    if words[0] == "beni":
        return words[1] if len(words) > 1 else ""
    scripts = [Path(word).stem for word in words if _is_script(word)]
    return {"run": "train"}.get(scripts[0], scripts[0]) if scripts else ""


def _typed(words: list[str]) -> list[str]:
    """What is typed behind the command; `…` stands for other options, and there are none."""
    at = 2 if words[0] == "beni" else next((n for n, word in enumerate(words, 1) if _is_script(word)), len(words))
    return [word for word in words[at:] if word != "…"]


def _is_script(word: str) -> bool:
    return word.endswith(".py") and word.startswith(("experiments/", "benchm"))


def execute(name: str, words: list[str]) -> None:
    """Do what the program of that name does."""
    check([name, *words])
    name, *words = shrunk([name, *words], json.loads(os.environ["SMALL"]))
    sys.argv = [name, *words]
    if name == "beni":
        from beni.cli.main import main

        main()
    elif name != "python":
        sys.argv += os.environ.get(f"{name.upper()}_OPTIONS", "").split()
        runpy.run_module({"torchrun": "torch.distributed.run"}.get(name, name), run_name="__main__", alter_sys=True)
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] in ("-", "-c"):
        program = sys.stdin.read() if words[0] == "-" else words[1]
        sys.modules["__main__"] = module = ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), vars(module))
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent.resolve()))
        runpy.run_path(words[0], run_name="__main__")


def answer(channel: socket.socket) -> None:
    """One command, in a process of its own."""
    head, files, *_ = socket.recv_fds(channel, 8, 3)
    size, words = int.from_bytes(head, "big"), b""
    while len(words) < size:
        words += channel.recv(size - len(words))
    name, arguments, folder, environment = json.loads(words)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for packages in site.getsitepackages():  # what pip has installed since
        site.addsitedir(packages)
    channel.sendall(os.getpid().to_bytes(8, "big"))
    code = 1
    try:
        execute(name, arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 as the interpreter does
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    channel.sendall(bytes([code & 255]))
    os._exit(code)


def serve(address: str) -> None:
    """Wait for commands, until this is killed or whoever started it is gone."""
    import beni.cli.commands
    import beni.cli.export
    import beni.cli.sweep
    import beni.cli.throughput  # noqa: F401 what commands import

    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(2)
        while os.getppid() == parent:
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            try:
                channel, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                answer(channel)
            channel.close()


if __name__ == "__main__":
    serve(sys.argv[1])
