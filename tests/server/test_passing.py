"""Sequences that are made and ended again by steps which are accepted and not computed yet."""

from __future__ import annotations

from swarm.server.ledger import Ledger, SessionLimits
from swarm.wire import swarm_pb2 as pb


def test_what_is_forgotten_includes_what_only_waiting_steps_have_ended() -> None:
    """The step that forks may have begun when the one that frees is cancelled: the copy is to be freed all the same."""
    ledger = Ledger(cost=lambda n: n, row_bytes=1, can_rollback=True, limits=SessionLimits(9, 0, 99))
    fork = pb.Operation(kind=pb.Operation.FORK, source=0, target=4, length=3)
    free = pb.Operation(kind=pb.Operation.FREE, source=4)
    rows = [pb.Rows(sequence=0, start=0, count=3)]
    first = ledger.accept([], rows, lambda wanted: True)
    assert first is not None
    for operation in (fork, free):
        assert ledger.accept([operation], [], lambda wanted: True) is not None
    ledger.computed(first, [], first.rows, bytes(3))
    assert ledger.received == {0: 3}
    assert sorted(ledger.forget()) == [0, 4]
    assert ledger.forget() == []
