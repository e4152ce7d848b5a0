"""Ranges of bytes are the sets that they stand for."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from swarm.models.loading.ranges import Range, length, merged, pieces, without

RANGES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda ends: (min(ends), max(ends))), max_size=6
)


def numbers(ranges: list[Range]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last)}


@given(RANGES)
def test_merged(ranges: list[Range]) -> None:
    found = merged(ranges)
    assert numbers(found) == numbers(ranges)
    assert all(one[1] < other[0] for one, other in pairwise(found))
    assert length(found) == len(numbers(ranges))


@given(RANGES, RANGES)
def test_without(wanted: list[Range], there: list[Range]) -> None:
    found = without(wanted, there)
    assert numbers(found) == numbers(wanted) - numbers(there)
    assert length(found) == len(numbers(found))


@given(RANGES, st.integers(1, 9))
def test_pieces(ranges: list[Range], most: int) -> None:
    found = pieces(merged(ranges), most)
    assert numbers(found) == numbers(ranges)
    assert all(0 < last - first <= most for first, last in found)
