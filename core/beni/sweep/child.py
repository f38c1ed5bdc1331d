"""One run of a sweep, in a process of its own: `python -m beni.sweep.child` with a configuration on its input.

The input stays open as long as the sweep lives: when it ends, by whatever means, so does this.
"""

import json
import os
import sys
import threading

from beni.config import run_config_from_dict
from beni.errors import BeniError
from beni.progress import transformers_bars
from beni.training.run import train

ORPHANED = 70
"""Exit code of a run whose sweep is gone; nobody sees it."""


def main() -> None:
    """Train what the first line of the input describes, and end with the exit code of `beni train`."""
    config = run_config_from_dict(json.loads(sys.stdin.readline()))
    transformers_bars()
    threading.Thread(target=_until_orphaned, daemon=True).start()
    try:
        train(config)
    except BeniError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def _until_orphaned() -> None:
    """End at once, as by a kill: a second process must never train in this folder."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
