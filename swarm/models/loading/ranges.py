"""Ranges of bytes, from the first to before the last: sums, differences, and pieces of them."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in as few ranges as there can be, in order; empty ones are left out."""
    found: list[Range] = []
    for first, last in sorted(each for each in ranges if each[0] < each[1]):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found


def without(wanted: Iterable[Range], there: Iterable[Range]) -> list[Range]:
    """What is wanted and not there, in order."""
    missing, have = [], merged(there)
    for first, last in merged(wanted):
        for begin, end in have:
            if begin < last and end > first:
                missing.append((first, begin))
                first = max(first, end)
        missing.append((first, last))
    return [each for each in missing if each[0] < each[1]]


def pieces(ranges: Iterable[Range], most: int) -> list[Range]:
    """The same in pieces of at most so many bytes."""
    return [(at, min(at + most, last)) for first, last in ranges for at in range(first, last, most)]


def length(ranges: Iterable[Range]) -> int:
    """Bytes of ranges that have none in common."""
    return sum(last - first for first, last in ranges)
