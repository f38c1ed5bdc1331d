"""Writes a saved model as a native one, and reads it back to see that it computes the same."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from beni.errors import ConfigError, NotWritten
from beni.eval.saved import load_saved
from beni.export.chat import as_written
from beni.export.llava import NAME, llava_processors, to_llava
from beni.export.verify import closest, verify
from beni.export.vocabulary import full_tables
from beni.sample import IMAGE_MARK

TARGETS = {NAME: (to_llava, llava_processors)}
"""Families of native classes: what makes the model, and what makes the processors to choose from."""


def export(folder: str, to: str, out: str) -> dict[str, Any]:
    """Export a saved model, or leave nothing behind.

    Args:
        folder: the saved model (RUN/model).
        to: one of `TARGETS`.
        out: the folder to make; `transformers` loads it without beni.

    Returns:
        The class, and by how much logits and prepared pictures of some questions differ (`Check`).

    Raises:
        ConfigError: no saved model, no such target, or a folder that holds something.
        ExportError: the model computes something that the class does not; says what.
        NotWritten: the disk is full, or gone.
    """
    if to not in TARGETS:
        raise ConfigError(f"--to {to}: choose one of {', '.join(TARGETS)}")
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--out {out}: there is something already; name a folder that is new or empty")
    model, composer = load_saved(folder, torch.device("cpu"))
    dtype = model.llm.dtype
    model.float()
    make_model, make_processors = TARGETS[to]
    tokenizer = as_written(composer.template.tokenizer)
    tables = full_tables(model, len(tokenizer), tokenizer.convert_tokens_to_ids(IMAGE_MARK))
    native = make_model(model, composer, tokenizer, tables).to(dtype)
    native.generation_config = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
        suppress_tokens=list(tables.silent),
    )
    processor = closest(make_processors(composer, tokenizer), composer)
    name = type(native).__name__
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            native.save_pretrained(scratch)
            processor.save_pretrained(scratch)
            del native, processor
            check = verify(
                AutoModelForImageTextToText.from_pretrained(scratch, dtype=torch.float32).eval(),
                AutoProcessor.from_pretrained(scratch),
                model,
                composer,
                set(tables.silent),
            )
            path.mkdir(exist_ok=True)
            for file in Path(scratch).iterdir():
                shutil.move(file, path / file.name)
    except OSError as error:
        raise NotWritten(f"the exported model cannot be written to {out}: {error}") from error
    return {"class": name, **{f"{key}_differ_by": value for key, value in asdict(check).items()}}
