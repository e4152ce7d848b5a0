"""A step whose sequences are in several sessions, issued as one step of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from swarm.types import Rows
from swarm.wire import swarm_pb2 as pb


class Issues(Protocol):
    """What issues steps: a session."""

    def begin(self, rows: Sequence[Rows], operations: Sequence[pb.Operation]) -> Callable[[], list[bytes]]: ...


def begin_split(
    sessions: Sequence[Issues], home: dict[int, int], rows: Sequence[Rows], operations: Sequence[pb.Operation]
) -> Callable[[], list[bytes]]:
    """Issue the step of each session; returns what waits for all outputs, in the order of `rows`.

    `home`: which session each sequence is in, which the operations change.
    """
    steps: dict[int, tuple[list[Rows], list[pb.Operation]]] = {}
    for operation in operations:
        here = home[operation.source]
        steps.setdefault(here, ([], []))[1].append(operation)
        if operation.kind != pb.Operation.FREE:
            home[operation.target] = here
        if operation.kind != pb.Operation.FORK:
            del home[operation.source]
    homes = [home[row.sequence] for row in rows]
    for row, here in zip(rows, homes, strict=True):
        steps.setdefault(here, ([], []))[0].append(row)
    waits = {here: sessions[here].begin(*step) for here, step in steps.items()}

    def wait() -> list[bytes]:
        outputs = {here: iter(each()) for here, each in waits.items()}
        return [next(outputs[here]) for here in homes]

    return wait
