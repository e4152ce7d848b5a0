"""What a hop must change to hold nothing but what is alive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.server.manifest import reconcile
from swarm.wire import swarm_pb2 as pb

FORK, FREE = pb.Operation.FORK, pb.Operation.FREE


def sequence(id: int, length: int, parent: int = 0, parent_length: int = 0) -> pb.Sequence:
    return pb.Sequence(id=id, length=length, parent=parent, parent_length=parent_length)


def carried_out(held: dict[int, int], alive: list[pb.Sequence], *, can_rollback: bool = True) -> dict[int, int]:
    """The lengths after the changes; each change must be one that blocks can do."""
    return carried_out_within(held, alive, {} if can_rollback else held)


def carried_out_within(held: dict[int, int], alive: list[pb.Sequence], reach: dict[int, int]) -> dict[int, int]:
    """The same, where sequences can go back to `reach`."""
    changes, lengths = reconcile(held, alive, reach), dict(held)
    for operation in changes.operations:
        if operation.kind == FORK:
            assert 0 < operation.length <= lengths[operation.source], "only what is held can be forked"
            assert operation.length >= reach.get(operation.source, 0)
            assert operation.target not in lengths
            lengths[operation.target] = operation.length
        else:
            assert operation.kind == FREE
            del lengths[operation.source]
    for name, length in changes.truncations:
        assert reach.get(name, 0) <= length < lengths[name]
        lengths[name] = length
    return lengths


def test_what_is_alive_stays_and_what_is_dead_goes() -> None:
    assert carried_out({1: 5, 2: 5}, [sequence(1, 9)]) == {1: 5}
    assert carried_out({1: 5}, []) == {}
    assert carried_out({}, [sequence(1, 9)]) == {}


def test_what_is_longer_than_was_issued_is_truncated_or_freed() -> None:
    assert carried_out({1: 5}, [sequence(1, 3)]) == {1: 3}
    assert carried_out({1: 5}, [sequence(1, 3)], can_rollback=False) == {}


def test_a_missing_sequence_is_forked_from_its_parent_even_from_a_dead_one() -> None:
    child = sequence(2, 7, parent=1, parent_length=4)
    assert carried_out({1: 5}, [sequence(1, 9), child]) == {1: 5, 2: 4}
    assert carried_out({1: 5}, [child]) == {2: 4}
    assert carried_out({1: 4}, [child], can_rollback=False) == {2: 4}


def test_a_parent_that_does_not_hold_the_shared_part_gives_nothing() -> None:
    child = sequence(2, 7, parent=1, parent_length=4)
    assert carried_out({1: 3}, [child]) == {}
    assert carried_out({1: 5}, [child], can_rollback=False) == {}
    assert carried_out({1: 5}, [sequence(2, 7)]) == {}, "nothing was shared"
    assert carried_out({1: 5}, [sequence(2, 3, parent=1, parent_length=4)]) == {}, "a manifest that cannot be"


def test_what_is_held_already_is_not_forked_again() -> None:
    assert carried_out({1: 5, 2: 1}, [sequence(1, 5), sequence(2, 7, parent=1, parent_length=4)]) == {1: 5, 2: 1}


def test_a_parent_that_is_truncated_gives_what_it_had() -> None:
    assert carried_out({1: 9}, [sequence(1, 2), sequence(2, 7, parent=1, parent_length=6)]) == {1: 2, 2: 6}


def test_where_a_sequence_can_go_back_some_positions_it_does_and_no_further() -> None:
    child = sequence(2, 7, parent=1, parent_length=4)
    assert carried_out_within({1: 5}, [child], {1: 4}) == {2: 4}
    assert carried_out_within({1: 5}, [child], {1: 5}) == {}
    assert carried_out_within({1: 5}, [sequence(1, 4)], {1: 4}) == {1: 4}
    assert carried_out_within({1: 5}, [sequence(1, 3)], {1: 4}) == {}


IDS, LENGTHS = st.integers(0, 5), st.integers(0, 9)
ALIVE = st.lists(st.builds(sequence, IDS, LENGTHS, IDS, LENGTHS), max_size=6, unique_by=lambda s: s.id)


@given(st.dictionaries(IDS, LENGTHS), ALIVE, st.booleans())
def test_after_any_manifest_a_hop_holds_only_what_was_issued(
    held: dict[int, int], alive: list[pb.Sequence], can_rollback: bool
) -> None:
    lengths = carried_out(held, alive, can_rollback=can_rollback)
    issued = {s.id: s.length for s in alive}
    assert set(lengths) <= set(issued)
    assert all(length <= issued[name] for name, length in lengths.items())
    for name, length in held.items():
        if name in issued and (can_rollback or length <= issued[name]):
            assert lengths[name] == min(length, issued[name]), "nothing is forgotten without need"
