"""Buffers that grow hold what was written, whatever was forgotten, forked and written over in between."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.models.span.kv.cost import OBJECT_BYTES, Cost
from swarm.models.span.kv.growing import GrowingCache

HEADS, KEY, VALUE, BLOCKS = 2, 3, 5, 2
POSITION = HEADS * (KEY + VALUE) * 4
"""Bytes of one position in one block."""
COST = Cost.together([Cost(OBJECT_BYTES, POSITION, rooms=True)] * BLOCKS)
Steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 90)),
        st.tuples(st.sampled_from(["truncate", "fork"]), st.integers(0, 300)),
    ),
    max_size=12,
)


@dataclass
class Plain:
    """The oracle: everything in one tensor, put together anew with every write."""

    keys: list[torch.Tensor] = field(default_factory=lambda: [torch.zeros(HEADS, 0, KEY) for _ in range(BLOCKS)])
    values: list[torch.Tensor] = field(default_factory=lambda: [torch.zeros(HEADS, 0, VALUE) for _ in range(BLOCKS)])

    def write(self, block: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys[block] = torch.cat([self.keys[block][:, :start], keys], dim=1)
        self.values[block] = torch.cat([self.values[block][:, :start], values], dim=1)


def write(cache: GrowingCache, plain: Plain, count: int, generator: torch.Generator) -> None:
    """The same numbers into both, behind what counts; what the cache gives back is all of the oracle's."""
    start = cache.length
    for block in range(BLOCKS):
        keys = torch.randn(HEADS, count, KEY, generator=generator)
        values = torch.randn(HEADS, count, VALUE, generator=generator)
        plain.write(block, start, keys, values)
        stored = cache.write(block, start, keys, values)
        assert torch.equal(stored[0], plain.keys[block])
        assert torch.equal(stored[1], plain.values[block])
    cache.length = start + count


@settings(max_examples=150, deadline=None)
@given(Steps)
def test_what_is_read_is_what_was_written(steps: list[tuple[str, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    cache, plain, left_behind = GrowingCache(), Plain(), list[tuple[GrowingCache, Plain]]()
    for kind, number in steps:
        if kind == "write":
            write(cache, plain, number, generator)
        elif kind == "truncate":
            expected = min(cache.length, number)
            cache.truncate(number)
            assert cache.length == expected
        else:
            left_behind.append((cache, Plain([*plain.keys], [*plain.values])))
            cache = cache.fork(number)
            assert cache.length == min(left_behind[-1][0].length, number)
    for other, its in [*left_behind, (cache, plain)]:
        assert other.nbytes == COST.of(other.length), "whatever way it came to its length"
        write(other, its, 1, generator)  # a fork shares nothing with what it came from


def test_a_position_more_copies_nothing_until_the_room_is_spent() -> None:
    cache, generator = GrowingCache(), torch.Generator().manual_seed(0)
    write(cache, plain := Plain(), 1, generator)
    sizes = [cache.nbytes]
    for _ in range(200):
        write(cache, plain, 1, generator)
        if cache.nbytes != sizes[-1]:
            sizes.append(cache.nbytes)
    assert len(sizes) <= 16, "it grows by a share, not by a position"
    assert cache.nbytes <= 1.25 * cache.length * BLOCKS * POSITION + BLOCKS * OBJECT_BYTES


def test_a_write_that_was_not_completed_does_not_count() -> None:
    """A pass that fails in the second block has written into the first."""
    cache, plain, generator = GrowingCache(), Plain(), torch.Generator().manual_seed(0)
    write(cache, plain, 4, generator)
    cache.write(0, 4, torch.ones(HEADS, 3, KEY), torch.ones(HEADS, 3, VALUE))
    assert cache.length == 4
    write(cache, plain, 2, generator)


def test_bytes_of_a_position_are_those_of_its_keys_and_values() -> None:
    cache = GrowingCache()
    assert (cache.nbytes, cache.position_bytes(0)) == (0, 0)
    write(cache, Plain(), 10, torch.Generator().manual_seed(0))
    assert cache.position_bytes(1) == POSITION
    assert cache.nbytes >= 10 * BLOCKS * cache.position_bytes(1)
