"""Files that a command writes for others to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_addresses(path: Path, addresses: Sequence[str]) -> None:
    """Multiaddrs, one a line. Who waits for the file never reads half of it."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text("".join(f"{address}\n" for address in addresses), encoding="utf-8")
    unfinished.replace(path)
