"""Loads what a run saved."""

import torch

from beni.data.document import Composer
from beni.errors import ConfigError
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
        ConfigError: the folder is not a saved model; says what it may have meant. Or its weights are not those of
            its parts, as these are installed here.
    """
    path = model_folder(folder, option)
    model, found = BeniForConditionalGeneration.from_pretrained(path, output_loading_info=True)
    if lacking := sorted(found["missing_keys"]):
        raise ConfigError(
            f"{option} {folder}: its weights lack {len(lacking)} tensors, the first is '{lacking[0]}': the file "
            "is cut, or a part is installed here in another release than it was saved with (config.json names that)"
        )
    return model.to(device).eval(), BeniProcessor.from_pretrained(path).composer
