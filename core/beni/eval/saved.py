"""Loads what a run saved."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from beni.data.document import Composer
from beni.errors import ConfigError
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.processing import BeniProcessor


def load_saved(folder: str, device: torch.device) -> tuple[BeniForConditionalGeneration, Composer]:
    """A saved model and what feeds it.

    Raises:
        ConfigError: the folder is not a saved model; says what it may have meant.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ConfigError(f"--model {folder}: no saved model there (a run leaves one in RUN/model when it ends)")
    if (path / "model" / "config.json").is_file():
        raise ConfigError(f"--model {folder} is a run; its model is {path / 'model'}")
    model = AutoModelForImageTextToText.from_pretrained(path)
    assert isinstance(model, BeniForConditionalGeneration)
    return model.to(device).eval(), BeniProcessor.from_pretrained(path).composer
