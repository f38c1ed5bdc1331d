"""Files inside files, read where they lie.

A window on a span opens the outer file when it is first read, and reads by position: nothing is shared with another
process, and only the bytes that are asked for are read.
"""

import io
import os
from pathlib import Path
from typing import Any

from beni.errors import DataError
from beni.sample import Span


def open_span(path: Path, span: Span) -> io.BufferedReader:
    """A stretch of a file as a file of its own; what is wrong with the path is told when it is first read."""
    return io.BufferedReader(_Window(path, span))


def read_span(path: Path, span: Span) -> bytes:
    """A stretch of a file.

    Raises:
        DataError: the file is missing, cannot be read, or ends too early.
    """
    try:
        with open_span(path, span) as file:
            data = file.read()
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) < span.length:
        raise DataError(f"{path} was cut off: it ends {span.length - len(data):,} bytes before the end of {span.name}")
    return data


class _Window(io.RawIOBase):
    def __init__(self, path: Path, span: Span) -> None:
        self.path = path
        self.span = span
        self.at = 0
        self.descriptor = -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.span.length}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        if self.descriptor < 0:
            self.descriptor = os.open(self.path, os.O_RDONLY)
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.span.length - self.at))
        data = os.pread(self.descriptor, count, self.span.start + self.at)
        view[: len(data)] = data
        self.at += len(data)
        return len(data)

    def readall(self) -> bytes:
        """In one go, where the base class would read by eight kilobytes."""
        data = bytearray(max(0, self.span.length - self.at))
        filled = 0
        while filled < len(data) and (count := self.readinto(memoryview(data)[filled:])):
            filled += count
        return bytes(data[:filled])

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        super().close()
