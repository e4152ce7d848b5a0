"""Parts of a file, kept on disk at their places, with a journal of what is there.

A line of the journal is written after its piece, and tells its digest: what was cut off while it was written, or has
changed since, is no part of the file.
"""

from __future__ import annotations

import hashlib
import re
import threading
from bisect import bisect_right
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swarm.models.loading.ranges import Range, merged, without

READERS = 4
"""Pieces that are compared with their digests at one time."""
LINE = re.compile(rb"(\d{1,15}) (\d{1,15}) ([0-9a-f]{64})")


class SparseFile:
    """`path`: the file, as long as the whole; beside it the journal. `identity`: of what it is a part, in one line;
    what was kept of another is forgotten. For threads of one process; several processes write the same bytes."""

    def __init__(self, path: Path, identity: str, size: int) -> None:
        self.path = path
        self.size = size
        self._journal = journal_of(path)
        self._begin = f"{identity} {size}\n".encode()
        self._lock = threading.Lock()
        self._sums: dict[Range, str] = {}
        self._checked: set[Range] = set()
        self._there: list[Range] = []
        self._open()

    def missing(self, wanted: Iterable[Range]) -> list[Range]:
        """What of `wanted` is not here. What was here before this process is compared with its digest first."""
        wanted = list(wanted)
        with self._lock:
            if all(self._covers(each) for each in wanted):
                return []
            old = [piece for piece in self._sums.keys() - self._checked if without([piece], wanted) != [piece]]
            with ThreadPoolExecutor(READERS) as pool:
                digests = pool.map(lambda piece: _digest(self._read(piece)), old)
                for piece, digest in zip(old, digests, strict=True):
                    if digest == self._sums[piece]:
                        self._checked.add(piece)
                    else:
                        del self._sums[piece]
            self._there = merged(self._checked)
            return without(wanted, self._there)

    def put(self, first: int, data: bytes) -> None:
        """Keep a piece. Raises OSError where there is no room."""
        digest = _digest(data)
        with self._lock:
            with self.path.open("r+b") as file:
                file.seek(first)
                file.write(data)
            with self._journal.open("ab") as journal:
                journal.write(f"{first} {first + len(data)} {digest}\n".encode())
            self._sums[first, first + len(data)] = digest
            self._checked.add((first, first + len(data)))
            self._there = merged([*self._there, (first, first + len(data))])

    def _covers(self, wanted: Range) -> bool:
        """Whether all of a range is here, and compared."""
        at = bisect_right(self._there, (wanted[0], self.size + 1)) - 1
        return wanted[0] >= wanted[1] or (at >= 0 and self._there[at][1] >= wanted[1])

    def _open(self) -> None:
        """Go on with what is kept, or begin."""
        kept = self._journal.read_bytes() if self._journal.exists() else b""
        if self.path.exists() and self.path.stat().st_size == self.size and kept.startswith(self._begin):
            whole = kept[: kept.rindex(b"\n") + 1]
            self._sums = dict(_piece(line, self.size) for line in whole.splitlines()[1:] if LINE.fullmatch(line))
            if whole != kept:  # a line that was cut off; what comes behind must not be read as a part of it
                with self._journal.open("ab") as journal:
                    journal.write(b"\n")
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb") as file:
            file.truncate(self.size)
        self._journal.write_bytes(self._begin)

    def _read(self, piece: Range) -> bytes:
        with self.path.open("rb") as file:
            file.seek(piece[0])
            return file.read(piece[1] - piece[0])


def journal_of(path: Path) -> Path:
    """Where the journal of a file is."""
    return path.with_name(f"{path.name}.journal")


def kept_of(path: Path) -> tuple[str, int] | None:
    """Of what a part is kept, and how long the whole is, by the journal; None where nothing is."""
    try:
        with journal_of(path).open("rb") as journal:
            begin = journal.readline(4096).decode()
    except (OSError, UnicodeDecodeError):
        return None
    found = re.fullmatch(r"(.*) (\d{1,15})\n", begin)
    return None if found is None else (found[1], int(found[2]))


def held(path: Path) -> int:
    """Bytes that a file takes on disk."""
    return path.stat().st_blocks * 512


def _piece(line: bytes, size: int) -> tuple[Range, str]:
    first, last, digest = line.split()
    return (min(int(first), size), min(int(last), size)), digest.decode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
