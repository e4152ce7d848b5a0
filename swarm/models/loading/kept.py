"""What may stay on disk of what was fetched or made: the most, and what goes first."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.models.loading.sparse import held, journal_of

log = logging.getLogger(__name__)

FOLDERS = ("ranges", "blocks")
UNFINISHED = ".part"
"""How files end that are being written."""
STALE = 24 * 3600
"""Seconds after which nobody finishes them."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file; `bytes` on disk, `used`: when it was last, in seconds since 1970."""

    path: Path
    bytes: int
    used: float


def surplus(kept: Sequence[Kept], most: int) -> list[Kept]:
    """What is to go so that the rest is at most so many bytes: what was not used for longest."""
    total, going = sum(each.bytes for each in kept), []
    for each in sorted(kept, key=lambda each: each.used):
        if total <= most:
            break
        going.append(each)
        total -= each.bytes
    return going


def trim(folder: Path, most: int | None) -> None:
    """Delete what is too much of what is kept in a cache folder; `most`: bytes, by default as much as stays free."""
    found = [each for name in FOLDERS for each in _files(folder / name)]
    if not found:
        return
    if most is None:
        most = (shutil.disk_usage(folder).free + sum(each.bytes for each in found)) // 2
    for each in surplus(found, most):
        each.path.unlink(missing_ok=True)
        journal_of(each.path).unlink(missing_ok=True)
        log.info("%s is not kept any longer: there may be %d bytes", each.path, most)


def _files(folder: Path) -> list[Kept]:
    found = []
    for path in folder.rglob("*"):
        try:
            stat = path.stat()
            if not path.is_file() or path.name.endswith(".journal"):
                continue
            if path.name.endswith(UNFINISHED) and time.time() - stat.st_mtime > STALE:
                path.unlink()
            elif not path.name.endswith(UNFINISHED):
                found.append(Kept(path, held(path), stat.st_mtime))
        except OSError:  # somebody else was faster
            continue
    return found
