"""Threads of OpenMP that wait give their core away, unless the user wants otherwise."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("given", ["", "77"])
def test_torch_is_loaded_with_it(given: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({"GOMP_SPINCOUNT": given} if given else {})
    command = [sys.executable, "-c", "import beni"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in told.stderr:
        pytest.skip("torch uses another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{given or 10000}'" in told.stderr
