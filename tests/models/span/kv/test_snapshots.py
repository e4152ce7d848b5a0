"""Where a sequence can go back to: as far as is said, with no more kept than is counted."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.models.span.kv.snapshots import APART, LONGEST, MOST, ROWS, Inputs, Snapshot, Snapshots


class Sequence:
    """One that goes on and back. The state behind n positions is n; the input at position p is p."""

    def __init__(self) -> None:
        self.past = Snapshots()
        self.computed = self.length = 0

    def on(self, count: int) -> None:
        """A pass over `count` positions more, and what the state had still to see."""
        hidden = torch.arange(self.length, self.length + count).view(1, -1, 1)
        before = Snapshot(self.computed, {0: self.computed})
        self.past.note(before, Inputs(self.length, hidden, torch.full((2, count), 7)))
        self.computed = self.length = self.length + count

    def back(self, length: int) -> None:
        snapshot = self.past.back_to(length)
        if length < self.computed:
            assert snapshot.states == {0: snapshot.position}, "the state is that of its position"
            self.computed = snapshot.position
        self.length = length
        if self.computed < length:
            owed = self.past.inputs(self.computed, length)
            assert owed.hidden.flatten().tolist() == list(range(self.computed, length))
            assert owed.places is not None
            assert owed.places.shape == (2, length - self.computed)


PASSES = st.one_of(st.integers(1, 9), st.integers(1, LONGEST))


@given(st.lists(st.tuples(PASSES, st.floats(0, 1)), max_size=60), st.integers(0, 300))
def test_as_many_positions_as_are_said_can_be_taken_back(turns: list[tuple[int, float]], prompt: int) -> None:
    sequence = Sequence()
    if prompt:
        sequence.on(prompt)
    begun = prompt if prompt > LONGEST else 0
    longest = sequence.length
    for count, share in turns:
        sequence.on(count)
        longest = max(longest, sequence.length)
        reach = sequence.past.reach
        assert reach is not None
        assert reach <= max(longest - APART, begun)
        assert len(sequence.past) <= MOST
        assert sequence.past.input_bytes <= ROWS * 3 * 8
        sequence.back(sequence.length - round(share * min(sequence.length - reach, APART)))


def test_nobody_goes_back_into_a_prompt() -> None:
    sequence = Sequence()
    sequence.on(LONGEST + 1)
    assert sequence.past.reach is None
    sequence.on(1)
    assert sequence.past.reach == LONGEST + 1


def test_a_copy_goes_back_by_itself() -> None:
    sequence = Sequence()
    for _ in range(3):
        sequence.on(5)
    twin = sequence.past.fork()
    sequence.back(7)
    assert twin.inputs(10, 15).hidden.flatten().tolist() == [10, 11, 12, 13, 14]
