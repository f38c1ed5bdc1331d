"""A run in Weights & Biases, beside its own files."""

import math
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from beni.errors import ConfigError, Stopped, first_line, with_extra


class Tracker:
    """Passes on what is logged; this one, to nobody."""

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def summarize(self, result: Mapping[str, Any]) -> None:
        """What result.json holds."""


class _WandbTracker(Tracker):
    def __init__(self, run: Any) -> None:
        self._run, self._lost = run, False
        run.define_metric("*", step_metric="step")  # a run that was continued may log a step again

    def log(self, line: Mapping[str, Any]) -> None:
        self._try(lambda: self._run.log(_numbers(line)))

    def summarize(self, result: Mapping[str, Any]) -> None:
        self._try(lambda: self._run.summary.update(_numbers(result)))

    def finish(self, exit_code: int) -> None:
        """The run ends."""
        self._try(lambda: self._run.finish(exit_code=exit_code))

    def _try(self, work: Callable[[], Any]) -> None:
        """Training does not end because somebody who watches it is gone: a warning tells it, once."""
        if self._lost:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001  of whatever kind: its service may die in any way
            self._lost = True
            why = f"{type(error).__name__}: {first_line(error)}"
            tqdm.write(f"warning: Weights & Biases is lost ({why}); the run goes on without", file=sys.stderr)


@contextmanager
def tracked(project: str, folder: Path, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Open the run of a folder; a run that goes on in its folder goes on there, too.

    Args:
        project: in Weights & Biases; empty for nobody.
        folder: of the run; what is kept on this machine goes to `wandb` in it.
        config: `RunConfig.to_dict()`.

    Raises:
        ConfigError: wandb is not installed, or refuses.
    """
    if not project:
        yield Tracker()
        return
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"--wandb needs Weights & Biases: {with_extra('wandb')}") from error
    try:
        run = wandb.init(
            project=project, id=_identity(folder), name=folder.name, dir=folder, config=dict(config), resume="allow"
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            f"--wandb {project}: {first_line(error)}; log in with `wandb login`, or set WANDB_MODE=offline to keep "
            f"everything on this machine"
        ) from error
    tracker = _WandbTracker(run)
    try:
        yield tracker
    except Stopped:  # and will go on
        tracker.finish(0)
        raise
    except BaseException:
        tracker.finish(1)
        raise
    tracker.finish(0)


def _identity(folder: Path) -> str:
    """What the run of a folder is called, however often it is continued."""
    file = folder / "wandb.id"
    if not file.is_file():
        file.write_text(f"{secrets.token_hex(8)}\n")
    return file.read_text().strip()


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """All finite numbers, those of a table under its name."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[prefix + name] = value
    return found
