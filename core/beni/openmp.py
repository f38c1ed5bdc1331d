"""How long waiting threads of OpenMP keep their core. To be imported before torch, which reads it when it is loaded.

By default that is some milliseconds, which are taken from data workers: beside another busy process a step then takes
many times as long (docs/performance.md).
"""

import os

SPINS = "10000"
"""Turns that an idle thread waits before it sleeps."""

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
