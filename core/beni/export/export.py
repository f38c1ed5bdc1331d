"""Writes a saved model as a native one, and reads it back to see that it computes the same."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from beni.errors import ConfigError
from beni.eval.saved import load_saved
from beni.export.chat import as_written
from beni.export.folder import whole, writing
from beni.export.idefics3 import IDEFICS3
from beni.export.llava import LLAVA
from beni.export.llava_next import LLAVA_NEXT
from beni.export.probes import pixel_differences
from beni.export.target import Source, Target
from beni.export.verify import Pair, verify
from beni.export.vocabulary import Tables, full_tables
from beni.report.card import Exported, metadata_of, write_exported_card
from beni.sample import IMAGE_MARK

CARD = "README.md"
TARGETS: dict[str, Target] = {target.name: target for target in (LLAVA, LLAVA_NEXT, IDEFICS3)}
"""Families of native classes, by what `--to` calls them."""


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
    target = TARGETS[to]
    with whole(out) as scratch:
        model, composer = load_saved(folder, torch.device("cpu"), "export")
        metadata = metadata_of(Path(folder) / CARD)
        dtype = model.llm.dtype
        model.float()
        tokenizer = as_written(composer.template.tokenizer, model.generation_config.pad_token_id, target.tokens)
        tables = full_tables(model, len(tokenizer), tokenizer.convert_tokens_to_ids(IMAGE_MARK))
        native = target.model(Source(model, composer, tokenizer, tables)).to(dtype)
        native.generation_config = _without_silent(model.generation_config, tables)
        processor, tolerance = min(
            target.processors(composer, tokenizer), key=lambda made: max(pixel_differences(made.processor, composer))
        )
        name = type(native).__name__
        with writing(out):
            native.save_pretrained(scratch)
            processor.save_pretrained(scratch)
        del native, processor  # what counts is what was written
        read = AutoModelForImageTextToText.from_pretrained(scratch, dtype=torch.float32).eval()
        pair = Pair(model, composer, set(tables.silent), read, AutoProcessor.from_pretrained(scratch), target)
        check = verify(pair, tolerance)
        with writing(out):
            write_exported_card(scratch / CARD, metadata, Exported(name, to, check.logits, check.pixels))
    return {"class": name, **{f"{key}_differ_by": value for key, value in asdict(check).items()}}


def _without_silent(options: GenerationConfig, tables: Tables) -> GenerationConfig:
    """How the model generates, never with a token that it cannot predict."""
    ours = copy.deepcopy(options)
    ours.suppress_tokens = sorted({*tables.silent, *(options.suppress_tokens or ())})
    return ours
