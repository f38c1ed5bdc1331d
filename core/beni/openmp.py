"""How long waiting threads of OpenMP keep their core. To be imported before torch, which reads it when it is loaded.

By default they wait for ever, which takes the core away from data workers: beside another busy process a step then
takes many times as long (docs/performance.md).
"""

import os

SPINS = "10000"
"""Turns that an idle thread waits before it sleeps."""

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
