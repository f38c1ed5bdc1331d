"""Where a saved model lies."""

import json
from pathlib import Path

from beni.errors import ConfigError
from beni.model.config import BeniConfig


def model_folder(folder: str, option: str) -> Path:
    """The folder of a saved model.

    Args:
        folder: as the user gave it.
        option: with which it was given, for messages.

    Raises:
        ConfigError: there is none; says what may have been meant.
    """
    path = Path(folder)
    if (path / "model" / "config.json").is_file():
        raise ConfigError(f"{option} {folder} is a run; its model is {path / 'model'}")
    file = path / "config.json"
    if not file.is_file():
        raise ConfigError(f"{option} {folder}: no saved model there (a run leaves one in RUN/model when it ends)")
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{option} {folder}: its config.json is damaged, or not that of a model") from error
    if kind != BeniConfig.model_type:
        raise ConfigError(
            f"{option} {folder} holds a model of the type '{kind}', and not one that a run saved (RUN/model); it "
            f"may be a part of one: see --llm, --encoder"
        )
    return path
