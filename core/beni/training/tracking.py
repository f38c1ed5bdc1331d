"""A run in Weights & Biases, beside its own files."""

import math
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beni.errors import ConfigError, first_line


class Tracker:
    """Passes on what is logged; this one, to nobody."""

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def summarize(self, result: Mapping[str, Any]) -> None:
        """What result.json holds."""


class _WandbTracker(Tracker):
    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("*", step_metric="step")  # a run that was continued may log a step again

    def log(self, line: Mapping[str, Any]) -> None:
        self._run.log(_numbers(line))

    def summarize(self, result: Mapping[str, Any]) -> None:
        self._run.summary.update(_numbers(result))


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
        raise ConfigError("--wandb needs Weights & Biases: pip install 'beni[wandb]'") from error
    try:
        run = wandb.init(
            project=project, id=_identity(folder), name=folder.name, dir=folder, config=dict(config), resume="allow"
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            f"--wandb {project}: {first_line(error)}; log in with `wandb login`, or set WANDB_MODE=offline to keep "
            f"everything on this machine"
        ) from error
    try:
        yield _WandbTracker(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


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
