"""Several runs, one behind the other: each starts from the weights that the one before it saved."""

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from beni.config import RunConfig, read_config_file, run_config_from_dict
from beni.errors import ConfigError
from beni.processes import processes
from beni.training.outputs import learned_otherwise
from beni.training.run import train


def train_stages(
    stages: Mapping[str, RunConfig],
    out: str | Path,
    only: str = "",
    done: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, dict[str, Any]]:
    """Train stages in order; each is a run of its own, in a folder of its own.

    Args:
        stages: configurations by name. Each starts from the model of the one before it; the first one where its
            `init` says, and so does a later one that has an `init` of its own.
        out: folder of all; that of a stage is OUT/NAME.
        only: the one stage to train; empty for all.
        done: called with a stage's result, in the main process, when it has ended.

    Returns:
        What each stage's `result.json` holds. With `resume = auto`, of those that ended before it is read.

    Raises:
        ConfigError: there is no such stage; or one that ended had other options.
        BeniError: as `train`; the stages before are done, and `resume = auto` goes on behind them.
    """
    if not stages or (only and only not in stages):
        raise ConfigError(f"there is no stage {only}: it has {', '.join(stages) or 'none'}")
    results: dict[str, dict[str, Any]] = {}
    trained = ""
    with processes(stages[only or next(iter(stages))].run) as procs:  # one group for all
        chain = chained(stages, procs.from_main(str(out)), only)
        for name, config in chain.items():
            if only and name != only:
                continue
            if config.run.resume not in ("never", "auto") and only != name:
                raise ConfigError(f"--resume {config.run.resume}: which stage is that? --stage NAME continues one")
            if config.run.dry_run and config.optim.init and not Path(config.optim.init).exists():
                if procs.is_main:
                    print(f"stage {name} starts from {config.optim.init}, which is not there yet")
                break
            if config.run.resume == "auto" and (ended := _ended(name, config)) is not None:
                if trained:
                    raise ConfigError(
                        f"stage {name} has ended in {config.run.out}, from another {trained} than was trained now: "
                        f"delete that folder, or train all stages into another --out"
                    )
                results[name] = ended
                continue
            if procs.is_main:
                print(f"stage {name}: {config.run.out}")
            results[name], trained = train(config), name
            gc.collect()  # a sharded model holds itself
            if procs.is_main:
                done(results[name])
    return results


def chained(stages: Mapping[str, RunConfig], out: str, only: str = "") -> dict[str, RunConfig]:
    """Give each stage its folder, and the weights that it starts from.

    An `init` that all have alike, as from the command line, is where the first one starts, or the only one.
    """
    first = next(iter(stages.values())).optim.init
    chain: dict[str, RunConfig] = {}
    before = ""
    for name, config in stages.items():
        own = config.optim.init if not before or name == only or config.optim.init != first else ""
        folder = Path(out) / name
        optim = replace(config.optim, init=own or before)
        chain[name] = replace(config, optim=optim, run=replace(config.run, out=str(folder)))
        before = str(folder / "model")
    return chain


def _ended(name: str, config: RunConfig) -> dict[str, Any] | None:
    """The result of a stage that has ended; None of one that has not.

    Raises:
        ConfigError: it was trained with other options than it has now.
    """
    folder = Path(config.run.out)
    if not (folder / "result.json").is_file():
        return None
    trained = run_config_from_dict(read_config_file(folder / "config.json"))
    if trained.training_hash() != config.training_hash():
        raise ConfigError(
            f"stage {name} has ended in {folder}, with other options ({learned_otherwise(folder, config)}): use those, "
            f"or train all stages into another --out"
        )
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))
