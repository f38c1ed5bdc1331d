"""What a process asks of its surroundings."""

import resource
import socket
import subprocess
import sys

import pytest

from beni import processes
from beni.config import RunOptions
from beni.errors import LostRank

PROGRAM = """
import resource, torch
from beni.processes import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    torch.ones(16_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**environment: str) -> int:
    """Of writing 20 tensors of 64 MB, one after another, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_used_again_without_faults_unless_the_user_chose() -> None:
    pages = 20 * 64_000_000 // (32 * resource.getpagesize())
    assert page_faults() < pages < page_faults(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")


def test_a_process_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a launcher holds the store; else torch itself waits for all, and says how many came."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = processes.dist.TCPStore("127.0.0.1", port, None, is_master=True, wait_for_workers=False)
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in (environment | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "LEAST_PATIENCE_S", 0.5)
    said = rf"all but rank 1 of the 2 processes came to 127\.0\.0\.1:{port} within 1 s: .*--timeout"
    with pytest.raises(LostRank, match=said), processes.processes(RunOptions(timeout=1.0, device="cpu")):
        pass
    del store
