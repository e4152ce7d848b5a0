"""What a hop must change so that it holds nothing but what the client says is alive. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swarm.wire import swarm_pb2 as pb


@dataclass(frozen=True, slots=True)
class Changes:
    """Operations in order (forks before frees), then sequences to truncate to a length."""

    operations: tuple[pb.Operation, ...]
    truncations: tuple[tuple[int, int], ...]


def reconcile(lengths: Mapping[int, int], alive: Iterable[pb.Sequence], *, can_rollback: bool) -> Changes:
    """Compare the lengths held with the sequences alive.

    A sequence that is missing is forked from its parent where the parent still holds the shared part; whatever is
    not alive is freed; what is longer than the client has issued is truncated (freed, where blocks cannot roll back).
    """
    alive = list(alive)
    living = {sequence.id for sequence in alive}
    forks = [
        pb.Operation(kind=pb.Operation.FORK, source=s.parent, target=s.id, length=s.parent_length)
        for s in alive
        if s.id not in lengths and _inherits(lengths, s, can_rollback)
    ]
    cut = [(s.id, s.length) for s in alive if lengths.get(s.id, 0) > s.length]
    dead = [sequence for sequence in lengths if sequence not in living]
    dead += [] if can_rollback else [sequence for sequence, _ in cut]
    frees = [pb.Operation(kind=pb.Operation.FREE, source=sequence) for sequence in dead]
    return Changes((*forks, *frees), tuple(cut) if can_rollback else ())


def _inherits(lengths: Mapping[int, int], sequence: pb.Sequence, can_rollback: bool) -> bool:
    held, shared = lengths.get(sequence.parent, 0), sequence.parent_length
    return 0 < shared <= min(held, sequence.length) and (can_rollback or held == shared)
