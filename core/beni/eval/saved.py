"""Loads what a run saved."""

import torch
from transformers import AutoModelForImageTextToText

from beni.data.document import Composer
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.processing import BeniProcessor
from beni.model.saved import model_folder


def load_saved(folder: str, device: torch.device) -> tuple[BeniForConditionalGeneration, Composer]:
    """A saved model and what feeds it.

    Raises:
        ConfigError: the folder is not a saved model; says what it may have meant.
    """
    path = model_folder(folder, "--model")
    model = AutoModelForImageTextToText.from_pretrained(path)
    assert isinstance(model, BeniForConditionalGeneration)
    return model.to(device).eval(), BeniProcessor.from_pretrained(path).composer
