"""Loads what a run saved."""

import torch

from beni.data.document import Composer
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.processing import BeniProcessor
from beni.model.saved import model_folder


def load_saved(
    folder: str, device: torch.device, option: str = "--model"
) -> tuple[BeniForConditionalGeneration, Composer]:
    """A saved model and what feeds it.

    Args:
        folder: as the user gave it.
        device: where the model goes.
        option: with which the folder was given, for messages.

    Raises:
        ConfigError: the folder is not a saved model; says what it may have meant.
    """
    path = model_folder(folder, option)
    model = BeniForConditionalGeneration.from_pretrained(path)
    return model.to(device).eval(), BeniProcessor.from_pretrained(path).composer
