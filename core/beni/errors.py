"""Exceptions whose message is one line for the person who runs beni.

Every mistake a user can make raises a `BeniError`; the command line prints its message, without a traceback, and exits
with the error's code. Anything else that escapes is a defect of ours and keeps its traceback.
"""

import os
import traceback
from pathlib import Path
from typing import ClassVar

HERE = Path(__file__).parent
"""This package."""


def with_extra(extra: str) -> str:
    """What to type for the packages of an extra. By name, PyPI would send another project's `beni`."""
    return f"pip install -e '.[{extra}]' in the clone of beni"


class BeniError(Exception):
    """A user's mistake or a broken input. The message says what is wrong, where, and what to do."""

    exit_code: ClassVar[int] = 2
    """Of the command line."""


class ConfigError(BeniError):
    """An option or a configuration file that does not make sense."""


class PluginError(BeniError):
    """A part that is unknown, ambiguous, broken, or written for another plugin interface."""


class Uncountable(PluginError):
    """A part whose operations cannot be counted, which keeps nobody from training it."""


class OtherRelease(UserWarning):
    """A part of something saved is there, in another release of its package than it was saved with."""


class IncompatiblePartsError(BeniError):
    """Parts that cannot work together; raised before anything is allocated."""


class GridError(IncompatiblePartsError):
    """A connector cannot divide a grid of tokens; `nearest` is (rows, columns) of one like it that would do."""

    def __init__(self, message: str, nearest: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest


class ExportError(BeniError):
    """A model that computes something else than the class it is to be exported to, or that the class lacks."""


class DataError(BeniError):
    """A data file, a sample or an image that cannot be used."""


class ImageError(DataError):
    """An image that cannot be fetched, decoded or trusted."""


class CheckpointError(BeniError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class NotWritten(BeniError):
    """Something of a run cannot be written: the disk is full, or gone."""

    exit_code: ClassVar[int] = os.EX_IOERR
    """74: the run goes on from its newest checkpoint when there is room."""


class LostProcess(BeniError):
    """A process that a run needs has died or does not answer."""

    exit_code: ClassVar[int] = os.EX_UNAVAILABLE
    """69: the run goes on from its newest checkpoint when it is continued."""


class LostRank(LostProcess):
    """Another of the processes that train together has failed, died, or does not answer."""


class Stopped(BeniError):
    """A run that was asked to end, and saved everything that it needs to go on."""

    exit_code: ClassVar[int] = os.EX_TEMPFAIL
    """75: nothing is wrong, the run goes on when it is continued."""


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`: a number with a noun whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def place_of(error: BaseException) -> str:
    """`FILE:LINE` of what raised an error: the innermost in no installed package, nor in this one, if there is one."""
    frames = list(traceback.extract_tb(error.__traceback__))
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    theirs = [frame for frame in own if not Path(frame.filename).is_relative_to(HERE)]
    [*_, innermost] = theirs or own or frames
    return f"{innermost.filename}:{innermost.lineno}"


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, short enough for a message of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0]
