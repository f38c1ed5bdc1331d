"""Threads of OpenMP that wait give their core away, unless the user wants otherwise."""

import os
import subprocess
import sys

import pytest

OURS = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
"""What decides how long they wait."""


@pytest.mark.parametrize(
    ("given", "spins"), [({}, 10000), ({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "PASSIVE"}, 0)]
)
def test_torch_is_loaded_with_it(given: dict[str, str], spins: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **given}
    command = [sys.executable, "-c", "import beni"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in told.stderr:
        pytest.skip("torch uses another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{spins}'" in told.stderr
