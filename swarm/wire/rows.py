"""Hidden states of one sequence by position, kept as the bytes that travelled: one row of `row_bytes` a position."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

Buffer = bytes | memoryview


class RowLog:
    """The rows of positions `first` .. `last` of one sequence, in order, without copying what is appended.

    A server keeps what it sent in one of these per sequence, a client keeps its own inputs.
    """

    __slots__ = ("_pieces", "_starts", "first", "last", "row_bytes")

    def __init__(self, row_bytes: int, first: int = 0) -> None:
        self.row_bytes = row_bytes
        self.first = first
        self.last = first
        self._starts: list[int] = []
        self._pieces: list[memoryview] = []

    @property
    def nbytes(self) -> int:
        return (self.last - self.first) * self.row_bytes

    def append(self, rows: Buffer) -> None:
        """Add rows (a whole number of them) behind the last."""
        count, rest = divmod(len(rows), self.row_bytes)
        if rest:
            raise ValueError(f"{len(rows)} bytes are no whole number of rows of {self.row_bytes} bytes")
        if count:
            self._starts.append(self.last)
            self._pieces.append(memoryview(rows))
            self.last += count

    def read(self, start: int, stop: int) -> bytes:
        """The rows of positions start .. stop, which must be held."""
        if not self.first <= start <= stop <= self.last:
            raise ValueError(f"rows {start}..{stop} are not within {self.first}..{self.last}")
        return b"".join(self._overlaps(start, stop))

    def _overlaps(self, start: int, stop: int) -> Iterator[memoryview]:
        index = max(bisect.bisect_right(self._starts, start) - 1, 0)
        while index < len(self._starts) and self._starts[index] < stop:
            piece, begin = self._pieces[index], self._starts[index]
            low = max(start - begin, 0) * self.row_bytes
            high = min((stop - begin) * self.row_bytes, len(piece))
            yield piece[low:high]
            index += 1

    def fork(self, length: int) -> RowLog:
        """A log of the positions below `length`, sharing the bytes."""
        twin = RowLog(self.row_bytes, self.first)
        twin._starts, twin._pieces, twin.last = self._starts[:], self._pieces[:], self.last
        twin.truncate(length)
        return twin

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on; the log may become empty and then begins there."""
        if length >= self.last:
            return
        if length <= self.first:
            self.clear(length)
            return
        keep = bisect.bisect_left(self._starts, length)
        del self._starts[keep:], self._pieces[keep:]
        self._pieces[-1] = self._pieces[-1][: (length - self._starts[-1]) * self.row_bytes]
        self.last = length

    def clear(self, position: int) -> None:
        """Forget every row; the next one appended is that of `position`."""
        self._starts.clear()
        self._pieces.clear()
        self.first = self.last = position
