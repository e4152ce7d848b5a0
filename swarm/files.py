"""Small files that people name: read whole, if they are files and no larger than what they should hold."""

from __future__ import annotations

from pathlib import Path

from swarm.errors import InvalidInput


def read_small(path: Path, limit: int) -> str:
    """The text of a file of at most `limit` bytes; a device that never ends is none.

    Raises InvalidInput, also for what is no text, and OSError where it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path}: it is there and is not a file")
    with path.open("rb") as file:
        read = file.read(limit + 1)
    if len(read) > limit:
        raise InvalidInput(f"{path}: it is longer than {limit} bytes")
    try:
        return read.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: it is no text: {error}") from error
