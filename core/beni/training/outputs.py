"""A run's folder: opened once, never mixed with another run's, written whole."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from beni.changes import spelled, told
from beni.config import RunConfig, learned_by, read_config_file
from beni.errors import CheckpointError, ConfigError, NotWritten, first_line
from beni.model.build import Built
from beni.model.processing import BeniProcessor
from beni.processes import Processes
from beni.training import committed
from beni.training.adapters import Adapters, merge, save_adapters
from beni.training.quantize import restored


def open_folder(config: RunConfig, resumed_from: Path | None) -> Path:
    """The run's folder: new, or empty of runs, unless the run in it is continued.

    Raises:
        ConfigError: it holds a run.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.connector.plugin.name}-{config.fusion.plugin.name}"
    folder = Path(config.run.out or Path("runs") / name.replace("/", "_"))
    if folder.is_file():
        raise ConfigError(f"--out {folder} is a file")
    continued = resumed_from is not None or config.run.resume == "auto" or config.run.dry_run
    if (folder / "config.json").exists() and not continued:
        other = _different(folder, config, _unplaced)
        holds = f"another run, of other options ({other})" if other else "a run already"
        whose = "that run, with its options," if other else "it"
        begun = any((folder / "checkpoints").glob("*")) or (folder / "result.json").exists()
        goes_on = f"continue {whose}" if begun else f"begin {whose} anew"
        raise ConfigError(f"--out {folder} holds {holds}: choose another folder, or {goes_on} with --resume auto")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def recorded(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder notes of its options, or None if it noted none that can be read."""
    try:
        return read_config_file(folder / "config.json")
    except ConfigError:
        return None


def learned_otherwise(folder: Path, config: RunConfig) -> str:
    """In which options the run in a folder learned something else than this one would; empty if in none."""
    return _different(folder, config, learned_by)


def check_continued(checkpoint: Path, config: RunConfig) -> None:
    """Whether a checkpoint is of this run, as far as options are noted beside it.

    Raises:
        CheckpointError: it is not; says which options differ.
    """
    if other := learned_otherwise(checkpoint.parent.parent, config):
        model = checkpoint.parent.parent / "model"
        hint = (
            f"; --init {model} --train PARTS starts one from the weights that this run saved" if model.is_dir() else ""
        )
        raise CheckpointError(
            f"checkpoint {checkpoint} was made with other options ({other}): going on would not give the same result; "
            f"use the same settings, or start a new run{hint}"
        )


def _different(folder: Path, config: RunConfig, of: Callable[[Mapping[str, Any]], dict[str, Any]]) -> str:
    """In which of some options the run in a folder differs from this one."""
    tables = recorded(folder)
    return told([spelled(of(tables))], [spelled(of(config.to_dict()))]) if tables is not None else ""


def _unplaced(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A run's tables without where it is and how it was started."""
    run = {name: value for name, value in tables.get("run", {}).items() if name not in ("out", "resume", "dry_run")}
    return {**tables, "run": run}


def resume_path(config: RunConfig) -> Path | None:
    """The checkpoint to continue from, or None to start.

    Raises:
        CheckpointError: `--resume` names a folder that does not exist.
        ConfigError: `--resume auto` without `--out`: a new folder never holds a checkpoint.
    """
    wanted = config.run.resume
    if wanted == "never":
        return None
    if wanted == "auto":
        if not config.run.out:
            raise ConfigError("--resume auto continues the run in --out: name that folder")
        return committed.latest(Path(config.run.out) / "checkpoints")
    path = Path(wanted)
    if not path.is_dir():
        raise CheckpointError(f"--resume {wanted}: there is no checkpoint folder of that name")
    return committed.latest(path / "checkpoints") or path


def save_model(folder: Path, built: Built, adapters: list[Adapters], processes: Processes) -> None:
    """Write `model/`, whole and with its tokenizer, whatever the sharding; every process takes part.

    Quantized weights are written as what they stand for. Adapters are merged into it, and written by themselves under
    `adapters/`.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(built.model, options=options)
    for alias in built.model.all_tied_weights_keys:
        state.pop(alias, None)  # tied tensors are one on disk
    state = {name: tensor.float() if tensor.dtype is torch.bfloat16 else tensor for name, tensor in state.items()}
    if processes.is_main:
        with room(folder):
            save_adapters(folder / "adapters", adapters, state)
            built.model.save_pretrained(folder / "model", state_dict=merge(built.model, restored(built.model, state)))
            built.model.config.dtype = "float32"  # whatever the model's first parameter is kept in
            built.model.config.save_pretrained(folder / "model")
            BeniProcessor(built.tokenizer, built.composer).save_pretrained(folder / "model")
    processes.barrier()


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Inside, results are written.

    Raises:
        NotWritten: they cannot be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise NotWritten(
            f"the results cannot be written to {folder}: {why}; make room, and --resume auto does the rest again: "
            f"{getattr(committed.latest(folder / 'checkpoints'), 'name', 'no checkpoint')} is whole"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)
