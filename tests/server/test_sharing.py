"""How the devices of one machine share blocks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import InvalidInput
from swarm.server.sharing import split
from swarm.types import Span


@pytest.mark.parametrize(
    ("memories", "parts"),
    [
        ([8], ["2:12"]),
        ([8, 8], ["2:7", "7:12"]),
        ([24, 8, 8], ["2:8", "8:10", "10:12"]),
        ([1, 0, 0], ["2:10", "10:11", "11:12"]),
    ],
)
def test_each_gets_its_share(memories: list[int], parts: list[str]) -> None:
    assert [str(part) for part in split(Span(2, 12), [5] * 12, memories)] == parts


def test_what_must_stay_together_is_on_one_device() -> None:
    joined = (Span(2, 8), Span(9, 11))
    assert [str(part) for part in split(Span(2, 12), [5] * 12, [8, 8], joined)] == ["2:8", "8:12"]
    with pytest.raises(InvalidInput, match="fewer than the 5 devices"):
        split(Span(2, 12), [5] * 12, [8] * 5, joined)


def test_more_devices_than_blocks_are_refused() -> None:
    with pytest.raises(InvalidInput, match="fewer than the 3 devices"):
        split(Span(0, 2), [1, 1], [1, 1, 1])


@given(
    st.lists(st.integers(1, 1 << 33), min_size=1, max_size=40),
    st.lists(st.integers(0, 1 << 37), min_size=1, max_size=6),
)
def test_all_blocks_are_shared_in_order(costs: list[int], memories: list[int]) -> None:
    memories = memories[: len(costs)]
    parts = split(Span(0, len(costs)), costs, memories)
    assert len(parts) == len(memories)
    assert (parts[0].first, parts[-1].last) == (0, len(costs))
    assert all(one.last == other.first for one, other in itertools.pairwise(parts))
