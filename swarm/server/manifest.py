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


def reconcile(lengths: Mapping[int, int], alive: Iterable[pb.Sequence], reach: Mapping[int, int]) -> Changes:
    """Compare the lengths held with the sequences alive.

    A sequence that is missing is forked from its parent where the parent still holds the shared part; whatever is
    not alive is freed; what is longer than the client has issued is truncated (freed, where it cannot go back so far).
    `reach`: the shortest length, beside 0, to which each sequence can go back; of those not named, any.
    """
    alive = list(alive)
    living = {sequence.id for sequence in alive}
    forks = [
        pb.Operation(kind=pb.Operation.FORK, source=s.parent, target=s.id, length=s.parent_length)
        for s in alive
        if s.id not in lengths and _inherits(lengths, s, reach)
    ]
    long = [(s.id, s.length) for s in alive if lengths.get(s.id, 0) > s.length]
    cut = [(sequence, length) for sequence, length in long if length >= reach.get(sequence, 0)]
    dead = [sequence for sequence in lengths if sequence not in living]
    dead += [sequence for sequence, length in long if length < reach.get(sequence, 0)]
    frees = [pb.Operation(kind=pb.Operation.FREE, source=sequence) for sequence in dead]
    return Changes((*forks, *frees), tuple(cut))


def _inherits(lengths: Mapping[int, int], sequence: pb.Sequence, reach: Mapping[int, int]) -> bool:
    held, shared = lengths.get(sequence.parent, 0), sequence.parent_length
    return 0 < shared <= min(held, sequence.length) and shared >= reach.get(sequence.parent, 0)
