"""A process that is frozen, killed or fails: the others end, say which one it was, and hang nowhere."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT = 3
RUN = """
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from beni.cli import main
from beni.errors import DataError
from beni.training import outputs, run, saving
from beni.training.callbacks import Callbacks
from tests.training.small import small_run

out, fault, victim = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
mine = os.environ["RANK"] == victim
peers = None

def told():
    "The others have been told what this process does now."
    count = peers.count + 2
    while peers.count < count:
        time.sleep(0.01)

original = Callbacks.after_step
def after_step(self, step):
    global peers
    peers = self.run.processes.peers
    original(self, step)
    if step.position.steps != 2 or not mine:
        return
    peers.doing = "in step 3"
    told()
    if fault == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "killed" or (fault == "killed in the second stage" and self.run.folder.name == "two"):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "failed":
        raise DataError("this and that")
    if fault == "defect":
        raise IndexError("this and that")
    if fault == "slow":
        time.sleep(60)
Callbacks.after_step = after_step

write = saving.Saver._write
def dying(self, *arguments):
    if mine and fault == "killed while saving":
        told()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, *arguments)
saving.Saver._write = dying

def late(function, here):
    "Takes two time-outs on one process, while the others wait."
    def wrapper(*arguments, **named):
        if fault == "long" and here:
            time.sleep(2 * TIMEOUT)
        return function(*arguments, **named)
    return wrapper

TIMEOUT = float(sys.argv[4])
run.prepare = late(run.prepare, mine)
main_process = os.environ["RANK"] == "0"
outputs.merge = late(outputs.merge, main_process)
run.report.write_report = late(run.report.write_report, main_process)
config = small_run(out, run={"out": str(out), "timeout": TIMEOUT, "device": "cpu"},
                   data={"eval_limit": 2})
from beni.cli import commands
from beni.cli.options import Asked
trained = replace(config, optim=replace(config.optim, train=("llm",)))
stages = {"one": config, "two": trained} if fault == "killed in the second stage" else {"": config}
commands.parse_stages = lambda *_: Asked(stages, "", str(out))
main.main(["train"])
"""


def start(out: Path, fault: str, victim: int, world: int = 2) -> list["subprocess.Popen[str]"]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(out), fault, str(victim), str(TIMEOUT)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(world)
    ]


def errors(process: "subprocess.Popen[str]") -> list[str]:
    """The lines that a process says went wrong, when it has ended."""
    _, said = process.communicate(timeout=300)
    return [line for line in said.splitlines() if line.startswith("error: ")]


def ends(tmp_path: Path, fault: str, victim: int) -> tuple[int, list[str]]:
    """Exit code of the process that is not the victim, and the errors it told."""
    started = start(tmp_path / "run", fault, victim)
    try:
        told = errors(started[1 - victim])
        return started[1 - victim].returncode, told
    finally:
        for process in started:
            process.kill()
            process.communicate()


HERE = re.escape(socket.gethostname())
WHO = rf"rank 1 \({HERE}, process \d+; last seen "
SEEN = rf"{WHO}in step 3\)"


def test_a_frozen_process_is_named(tmp_path: Path) -> None:
    code, [told] = ends(tmp_path, "frozen", 1)
    assert code == os.EX_UNAVAILABLE
    assert re.match(f"error: {SEEN} does not answer: .*--resume auto", told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "victim", "said"),
    [
        ("frozen", 0, r"rank 0 at 127\.0\.0\.1:\d+, through which .*, does not answer"),
        ("killed", 0, r"rank 0 at 127\.0\.0\.1:\d+, through which .*, has ended"),
        ("killed", 1, f"{SEEN} does not answer"),
        ("killed while saving", 1, f"{WHO}saving the checkpoint of step 4. does not answer"),
        ("killed in the second stage", 1, f"{SEEN} does not answer"),
        # its note is read before the store is gone with it, or it is not
        ("failed", 0, r"rank 0 (\(.*\) has ended: this and that|at .*, through which .*, (has ended|does not answer))"),
        ("failed", 1, f"{SEEN} has ended: this and that"),
        ("defect", 1, f"{SEEN} has ended: IndexError: this and that"),
        ("slow", 1, f"in step 3: waited {TIMEOUT} s .*--timeout"),
    ],
    ids=lambda value: None if isinstance(value, int) else value if value.replace(" ", "").isalpha() else "",
)
def test_who_is_lost_is_named(tmp_path: Path, fault: str, victim: int, said: str) -> None:
    code, [told] = ends(tmp_path, fault, victim)
    assert code == os.EX_UNAVAILABLE and re.match(f"error: {said}", told)


@pytest.mark.slow
def test_long_work_of_one_process_is_waited_for(tmp_path: Path) -> None:
    """Preparing, writing the model, writing the report: each takes longer than the time-out."""
    started = start(tmp_path / "run", "long", 1)
    try:
        assert [errors(process) for process in started] == [[], []]
        assert [process.returncode for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    assert (tmp_path / "run/report.html").is_file()
