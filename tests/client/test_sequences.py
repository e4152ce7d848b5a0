"""What a client knows of its sequences: against a model that is too simple to be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm.client.sequences import Expected, Piece, Sequences
from swarm.errors import InvalidInput, MalformedFrame
from swarm.types import Rows
from swarm.wire import swarm_pb2 as pb

FORK, MOVE, FREE = pb.Operation.FORK, pb.Operation.MOVE, pb.Operation.FREE
ROW = struct.Struct("<I")


def rows_of(numbers: list[int]) -> bytes:
    return b"".join(map(ROW.pack, numbers))


def outputs(sequence: int, start: int, numbers: list[int]) -> pb.Step:
    rows = [pb.Rows(sequence=sequence, start=start, count=len(numbers), want=len(numbers))] if numbers else []
    return pb.Step(rows=rows, hidden=rows_of(numbers))


@dataclass
class Awaited:
    """One expectation, and what must come of it."""

    real: Expected
    first: int
    last: int
    come: int


class AgainstLists(RuleBasedStateMachine):
    """Each sequence is a list of its inputs; output i of a sequence is its input plus one."""

    def __init__(self) -> None:
        super().__init__()
        self.real = Sequences(ROW.size)
        self.lists: dict[int, list[int]] = {}
        self.awaited: dict[int, list[Awaited]] = {}
        self.fresh = 0
        self.number = 0

    @property
    def missing(self) -> dict[int, int]:
        """Per sequence the first output that is waited for and not there."""
        return {s: a[0].come for s, a in self.awaited.items() if a and s in self.lists}

    def some(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.lists)), label="sequence")

    @rule(data=st.data(), new=st.booleans(), count=st.integers(1, 5))
    def append(self, data: st.DataObject, new: bool, count: int) -> None:
        if new or not self.lists:
            sequence, self.fresh = self.fresh, self.fresh + 1
        else:
            sequence = self.some(data)
        want = data.draw(st.integers(0, count), label="want")
        inputs = list(range(self.number, self.number + count))
        self.number += count
        start = len(self.lists.setdefault(sequence, []))
        piece, expected = self.real.append(Rows(sequence, rows_of(inputs), want))
        assert piece == Piece(sequence, start, count, want)
        assert expected.complete == (want == 0)
        self.lists[sequence] += inputs
        if want:
            first = start + count - want
            self.awaited.setdefault(sequence, []).append(Awaited(expected, first, start + count, first))

    @precondition(lambda self: self.lists)
    @rule(data=st.data(), kind=st.sampled_from([FORK, MOVE, FREE]))
    def operate(self, data: st.DataObject, kind: pb.Operation.Kind) -> None:
        source = self.some(data)
        length = data.draw(st.integers(0, len(self.lists[source])), label="length")
        target, self.fresh = self.fresh, self.fresh + 1
        operation = pb.Operation(kind=kind, source=source, target=target, length=length)
        expected = {s: len(inputs) for s, inputs in self.lists.items()}
        if kind != FREE:
            self.lists[target] = self.lists[source][:length]
            expected[target] = length
        ended = self.awaited.pop(source, []) if kind != FORK else []
        if kind != FORK:
            for table in (self.lists, expected):
                table.pop(source, None)
        assert self.real.preview([operation]) == expected
        self.real.operate([operation])
        assert all(awaited.real.void for awaited in ended)

    @precondition(lambda self: self.missing)
    @rule(data=st.data(), early=st.integers(0, 3))
    def deliver(self, data: st.DataObject, early: int) -> None:
        """Outputs arrive, some for the second time."""
        sequence = data.draw(st.sampled_from(sorted(self.missing)), label="missing")
        begin, length = self.missing[sequence], len(self.lists[sequence])
        start = max(begin - early, 0)
        stop = data.draw(st.integers(start + 1, length), label="stop")
        news = self.real.deliver(outputs(sequence, start, [n + 1 for n in self.lists[sequence][start:stop]]))
        assert news == (stop > begin)
        for awaited in self.awaited[sequence]:
            awaited.come = min(max(awaited.come, stop), awaited.last)
            if awaited.come == awaited.last:
                assert awaited.real.complete
                expected = [n + 1 for n in self.lists[sequence][awaited.first : awaited.last]]
                assert awaited.real.outputs == rows_of(expected)
        self.awaited[sequence] = [a for a in self.awaited[sequence] if a.come < a.last]

    @precondition(lambda self: self.missing)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """A gap, or outputs of what was never issued."""
        sequence = data.draw(st.sampled_from(sorted(self.missing)), label="missing")
        length = len(self.lists[sequence])
        with pytest.raises(MalformedFrame):
            self.real.deliver(outputs(sequence, self.missing[sequence], [0] * (length - self.missing[sequence] + 1)))
        if self.missing[sequence] + 1 < length:
            with pytest.raises(MalformedFrame):
                self.real.deliver(outputs(sequence, self.missing[sequence] + 1, [0]))

    @rule(sequence=st.integers(0, 50), start=st.integers(0, 9))
    def unasked(self, sequence: int, start: int) -> None:
        if sequence not in self.missing:
            assert not self.real.deliver(outputs(sequence, start, [1, 2, 3]))

    @precondition(lambda self: self.missing)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.missing)), label="given up")
        awaited = self.awaited[sequence].pop(data.draw(st.integers(0, len(self.awaited[sequence]) - 1), label="which"))
        self.real.give_up([awaited.real])

    @rule(limit=st.integers(1, 4), data=st.data())
    def resend(self, limit: int, data: st.DataObject) -> None:
        """A snapshot's steps from anywhere are the inputs from there, and ask for what is missing."""
        snapshot = self.real.snapshot()
        assert snapshot.lengths == {s: len(inputs) for s, inputs in self.lists.items()}
        wanted = {s: self.missing.get(s, len(inputs)) for s, inputs in self.lists.items()}
        assert snapshot.wanted == wanted
        starts = {s: data.draw(st.integers(0, len(inputs)), label="start") for s, inputs in self.lists.items()}
        again: dict[int, list[int]] = {s: [] for s in self.lists}
        asked: dict[int, set[int]] = {s: set() for s in self.lists}
        for step in snapshot.steps(starts, limit):
            assert sum(row.count for row in step.rows) <= limit
            numbers = [number for (number,) in ROW.iter_unpack(step.hidden)]
            for row in step.rows:
                assert row.start == starts[row.sequence] + len(again[row.sequence])
                again[row.sequence] += numbers[: row.count]
                asked[row.sequence] |= set(range(row.start + row.count - row.want, row.start + row.count))
                numbers = numbers[row.count :]
        for sequence, inputs in self.lists.items():
            assert again[sequence] == inputs[starts[sequence] :]
            assert asked[sequence] == set(range(max(wanted[sequence], starts[sequence]), len(inputs)))

    @invariant()
    def counts(self) -> None:
        assert self.real.lengths == {s: len(inputs) for s, inputs in self.lists.items()}
        assert self.real.positions == sum(map(len, self.lists.values()))


TestAgainstLists = AgainstLists.TestCase
TestAgainstLists.settings = settings(max_examples=60, stateful_step_count=30)


def two() -> Sequences:
    sequences = Sequences(ROW.size)
    sequences.append(Rows(0, rows_of([1, 2, 3]), 1))
    sequences.append(Rows(1, rows_of([4]), 1))
    return sequences


def operation(kind: pb.Operation.Kind, source: int, target: int = 0, length: int = 0) -> pb.Operation:
    return pb.Operation(kind=kind, source=source, target=target, length=length)


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([operation(FORK, 9, 2, 1)], id="of nothing"),
        pytest.param([operation(FREE, 9)], id="freeing nothing"),
        pytest.param([operation(FORK, 0, 1, 1)], id="onto another"),
        pytest.param([operation(FORK, 0, 0, 1)], id="onto itself"),
        pytest.param([operation(FORK, 0, 2, 4)], id="of more than there is"),
        pytest.param([operation(FREE, 0), operation(FORK, 0, 2, 1)], id="of what was just freed"),
        pytest.param([operation(MOVE, 0, 2, 1), operation(MOVE, 0, 3, 1)], id="of what was just moved"),
        pytest.param([operation(FREE, 1), operation(FORK, 0, 1, 1)], id="onto an id that was used"),
    ],
)
def test_impossible_operations_are_refused_and_change_nothing(operations: list[pb.Operation]) -> None:
    sequences = two()
    with pytest.raises(InvalidInput):
        sequences.preview(operations)
    assert sequences.lengths == {0: 3, 1: 1}


def test_an_id_that_has_ended_is_no_new_sequence() -> None:
    sequences = two()
    sequences.operate([operation(FREE, 1)])
    for sequence in (1, -1, 1 << 32):
        with pytest.raises(InvalidInput):
            sequences.check_new(sequence)
    with pytest.raises(InvalidInput):
        sequences.preview([operation(FORK, 0, 1, 1)])
    sequences.check_new(2)


def test_the_manifest_says_where_a_sequence_comes_from() -> None:
    sequences = two()
    sequences.operate([operation(FORK, 0, 2, 2), operation(MOVE, 1, 3, 1)])
    sequences.append(Rows(2, rows_of([7]), 0))
    assert sorted((s.id, s.length, s.parent, s.parent_length) for s in sequences.snapshot().manifest) == [
        (0, 3, 0, 0),
        (2, 3, 0, 2),
        (3, 1, 1, 1),
    ]


def test_a_snapshot_stays_as_it_was() -> None:
    sequences = two()
    snapshot = sequences.snapshot()
    sequences.append(Rows(0, rows_of([9]), 1))
    sequences.operate([operation(FREE, 1)])
    assert snapshot.lengths == {0: 3, 1: 1}
    assert b"".join(step.hidden for step in snapshot.steps({}, 99)) == rows_of([1, 2, 3, 4])
