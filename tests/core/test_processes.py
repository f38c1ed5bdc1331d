"""What a process asks of its surroundings."""

import resource
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_used_again_without_faults_unless_the_user_chose() -> None:
    pages = 20 * 64_000_000 // (32 * resource.getpagesize())
    assert page_faults() < pages < page_faults(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
