"""The SLURM script, with stand-ins for SLURM's own commands: two tasks on this machine."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
tasks = []
for task in ("0", "1"):
    tasks.append(subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": task, "SLURM_LOCALID": task}))
with open(os.environ["TASKS"], "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
import os, sys
if sys.argv[1:3] == ["show", "hostnames"]:
    print("127.0.0.1\\nother")
else:
    open(os.environ["QUEUE"], "a").write(" ".join(sys.argv[1:]) + "\\n")
"""
RUN = [
    *("--data", "shapes?images=60", "--eval-limit", "4", "--device", "cpu", "--rows", "2", "--row-tokens", "256"),
    *("--llm.width", "32", "--llm.heads", "2", "--llm.ff-width", "48", "--encoder.width", "32", "--encoder.heads", "2"),
    *("--workers", "0", "--log-every", "1", "--eval-every", "1000"),
]


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two tasks."""
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!{sys.executable}\n{program}")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    notes = {"TASKS": str(tmp_path / "tasks"), "QUEUE": str(tmp_path / "queue")}
    return os.environ | slurm | notes | {"PATH": path}


@contextmanager
def job(cluster: dict[str, str], *options: str) -> Iterator["subprocess.Popen[str]"]:
    """The script, running; nothing of it is left behind the `with` block."""
    command = ["bash", str(ROOT / "experiments" / "slurm.sh"), *options]
    started = subprocess.Popen(
        command, cwd=ROOT, env=cluster, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def ask_to_stop_behind(step: int, started: "subprocess.Popen[str]", out: Path, tasks: str) -> int:
    """When a step is logged both tasks get SIGTERM; returns how the job ended."""
    log = out / "metrics.jsonl"
    while not log.is_file() or f'"step": {step},' not in log.read_text():
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.1)
    for task in Path(tasks).read_text().split():
        os.kill(int(task), signal.SIGTERM)
    return started.wait()


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(cluster: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--out", str(out), *RUN]
    with job(cluster, *options, "--steps", "100000") as first:
        assert ask_to_stop_behind(1, first, out, cluster["TASKS"]) == 75
    assert Path(cluster["QUEUE"]).read_text() == f"requeue {cluster['SLURM_JOB_ID']}\n"
    state = json.loads((out / "checkpoints" / (out / "checkpoints/latest").read_text() / "state.json").read_text())
    assert [part["processes"] for part in state["facts"]["computed"]] == [2]
    with job(cluster, *options, "--steps", "100000") as again:
        assert ask_to_stop_behind(state["position"]["steps"] + 1, again, out, cluster["TASKS"]) == 75


def test_a_folder_is_needed_to_go_on(cluster: dict[str, str]) -> None:
    with job(cluster, *RUN) as refused:
        assert "name the run's folder with --out" in refused.communicate()[1] and refused.returncode == 2
