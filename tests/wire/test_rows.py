"""A log of rows: against a plain list."""

from __future__ import annotations

import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from swarm.wire.rows import RowLog

ROW = struct.Struct("<I")


def rows_of(numbers: list[int]) -> bytes:
    return b"".join(map(ROW.pack, numbers))


class AgainstList(RuleBasedStateMachine):
    """`first`, and the numbers from there on; every fork goes on as a log of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.pairs: list[tuple[RowLog, list[int], list[int]]] = [(RowLog(ROW.size), [0], [])]

    def pick(self, data: st.DataObject) -> tuple[RowLog, list[int], list[int]]:
        return data.draw(st.sampled_from(self.pairs), label="log")

    @rule(data=st.data(), count=st.integers(0, 4), view=st.booleans())
    def append(self, data: st.DataObject, count: int, view: bool) -> None:
        log, _, numbers = self.pick(data)
        new = list(range(self.number, self.number + count))
        self.number += count
        rows = rows_of(new)
        log.append(memoryview(rows) if view else rows)
        numbers += new

    @rule(data=st.data(), length=st.integers(0, 30))
    def truncate(self, data: st.DataObject, length: int) -> None:
        log, first, numbers = self.pick(data)
        log.truncate(length)
        if length < first[0] + len(numbers):
            first[0] = min(first[0], length)
            del numbers[length - first[0] :]

    @rule(data=st.data(), length=st.integers(0, 30))
    def fork(self, data: st.DataObject, length: int) -> None:
        log, first, numbers = self.pick(data)
        if len(self.pairs) < 6:
            twin, begin = log.fork(length), min(first[0], length)
            self.pairs.append((twin, [begin], numbers[: max(length - first[0], 0)]))

    @rule(data=st.data(), position=st.integers(0, 30))
    def clear(self, data: st.DataObject, position: int) -> None:
        log, first, numbers = self.pick(data)
        log.clear(position)
        first[0] = position
        numbers.clear()

    @rule(data=st.data(), start=st.integers(0, 30), count=st.integers(0, 30))
    def read(self, data: st.DataObject, start: int, count: int) -> None:
        log, first, numbers = self.pick(data)
        if first[0] <= start <= start + count <= first[0] + len(numbers):
            begin = start - first[0]
            assert log.read(start, start + count) == rows_of(numbers[begin : begin + count])
        else:
            with pytest.raises(ValueError, match="are not within"):
                log.read(start, start + count)

    @invariant()
    def same(self) -> None:
        for log, first, numbers in self.pairs:
            assert (log.first, log.last, log.nbytes) == (first[0], first[0] + len(numbers), 4 * len(numbers))
            assert log.read(log.first, log.last) == rows_of(numbers)


TestAgainstList = AgainstList.TestCase
TestAgainstList.settings = settings(max_examples=60, stateful_step_count=30)


def test_part_of_a_row_is_refused() -> None:
    log = RowLog(8)
    with pytest.raises(ValueError, match="no whole number of rows"):
        log.append(bytes(12))
    assert log.last == 0


def test_a_log_may_begin_in_the_middle() -> None:
    log = RowLog(ROW.size, 5)
    log.append(rows_of([1, 2]))
    assert (log.first, log.last) == (5, 7)
    assert log.read(6, 7) == rows_of([2])
    assert log.fork(3).last == 3
