"""Where a saved model lies."""

from pathlib import Path

from beni.errors import ConfigError


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
    if not (path / "config.json").is_file():
        raise ConfigError(f"{option} {folder}: no saved model there (a run leaves one in RUN/model when it ends)")
    return path
