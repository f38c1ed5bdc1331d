"""Several runs, one behind the other: each starts from the weights that the one before it saved."""

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from beni.config import RunConfig
from beni.errors import ConfigError
from beni.processes import processes
from beni.training.run import train


def train_stages(
    stages: Mapping[str, RunConfig],
    out: str | Path,
    only: str = "",
    done: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, dict[str, Any]]:
    """Train stages in order; each is a run of its own, in a folder of its own.

    Args:
        stages: configurations by name. One that says nothing of `init` starts from the model of the one before it.
        out: folder of all; that of a stage is OUT/NAME.
        only: the one stage to train; empty for all.
        done: called with a stage's result, in the main process, when it has ended.

    Returns:
        What each stage's `result.json` holds. With `resume = auto`, of those that ended before it is read.

    Raises:
        BeniError: as `train`; the stages before are done, and `resume = auto` goes on behind them.
    """
    results: dict[str, dict[str, Any]] = {}
    with processes(next(iter(stages.values())).run) as procs:  # one group for all
        chain = chained(stages, procs.from_main(str(out)))
        for name, config in chain.items():
            if only and name != only:
                continue
            if config.run.resume not in ("never", "auto") and only != name:
                raise ConfigError(f"--resume {config.run.resume}: which stage is that? --stage NAME continues one")
            if config.run.dry_run and config.optim.init and not Path(config.optim.init).exists():
                if procs.is_main:
                    print(f"stage {name} starts from {config.optim.init}, which is not there yet")
                break
            ended = Path(config.run.out) / "result.json"
            if config.run.resume == "auto" and ended.is_file():
                results[name] = json.loads(ended.read_text(encoding="utf-8"))
                continue
            if procs.is_main:
                print(f"stage {name}: {config.run.out}")
            results[name] = train(config)
            gc.collect()  # a sharded model holds itself
            if procs.is_main:
                done(results[name])
    return results


def chained(stages: Mapping[str, RunConfig], out: str) -> dict[str, RunConfig]:
    """Give each stage its folder, and the weights that it starts from."""
    chain: dict[str, RunConfig] = {}
    before = ""
    for name, config in stages.items():
        folder = Path(out) / name
        optim = replace(config.optim, init=config.optim.init or before)
        chain[name] = replace(config, optim=optim, run=replace(config.run, out=str(folder)))
        before = str(folder / "model")
    return chain
