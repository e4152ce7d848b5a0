"""Files that a command writes for others to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from swarm.errors import InvalidInput


def check_output(path: Path, option: str) -> Path:
    """A file that a finished one will be renamed over. Raises InvalidInput if it cannot; makes nothing."""
    return _checked(path, option, _output_fault)


def check_key(path: Path, option: str) -> Path:
    """The file of a key, which is there or will be made. Raises InvalidInput for what is there and is no file."""
    return _checked(path, option, lambda path: NO_FILE if path.exists() and not path.is_file() else None)


NO_FILE = "it is there and is not a file; pass another path"


def _checked(path: Path, option: str, fault_of: Callable[[Path], str | None]) -> Path:
    try:
        fault = fault_of(path) if path.name else "it is not the name of a file"
    except OSError as error:
        fault = error.strerror
    if fault is not None:
        raise InvalidInput(f"{option} {str(path)!r} cannot be used: {fault}")
    return path


def _output_fault(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r}; make it first"
    if path.exists() and not path.is_file():
        return NO_FILE
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return "its folder cannot be written to; pass another path"
    return None


def write_addresses(path: Path, addresses: Sequence[str]) -> None:
    """Multiaddrs, one a line. Who waits for the file never reads half of it."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text("".join(f"{address}\n" for address in addresses), encoding="utf-8")
    unfinished.replace(path)
