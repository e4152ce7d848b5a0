"""Files that people name: read whole, if they are files and no larger than what they should hold, and written whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from swarm.errors import InvalidInput


def read_small(path: Path, limit: int) -> str:
    """The text of a file of at most `limit` bytes; a device that never ends is none.

    Raises InvalidInput, also for what is no text, and OSError where it cannot be read.
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: it is no text: {error}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """The same of a file that is no text. Raises as `read_small`."""
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path}: it is there and is not a file")
    with path.open("rb") as file:
        read = file.read(limit + 1)
    if len(read) > limit:
        raise InvalidInput(f"{path}: it is longer than {limit} bytes")
    return read


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, with the folders that it is in. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
