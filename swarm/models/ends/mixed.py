"""Rows of one batch through different sessions, each with an adapter of its own, as if there were one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swarm.errors import InvalidInput
from swarm.models.ends.remote_cache import RemoteSession
from swarm.types import Rows
from swarm.wire import swarm_pb2 as pb

Steps = tuple[list[Rows], list[pb.Operation]]


class MixedSession:
    """Satisfies `RemoteSession`. `lanes`: which of `sessions` each row of the batch has."""

    def __init__(self, sessions: Sequence[RemoteSession], lanes: Sequence[int]) -> None:
        self._sessions = sessions
        self._lanes = lanes
        self._home: dict[int, int] = {}
        """Of each sequence."""

    @property
    def can_rollback(self) -> bool:
        """Whether single positions can be forgotten."""
        return all(session.can_rollback for session in self._sessions)

    def batch(self, sequences: Sequence[int]) -> None:
        """These are the rows of the step that is to begin."""
        if len(sequences) != len(self._lanes):
            raise InvalidInput(f"adapter_names has {len(self._lanes)} names for a batch of {len(sequences)}")
        for sequence, lane in zip(sequences, self._lanes, strict=True):
            self._put(sequence, lane)

    def begin(self, rows: Sequence[Rows], operations: Sequence[pb.Operation]) -> Callable[[], list[bytes]]:
        """Issue the step of each session; returns what waits for all outputs, in the order of `rows`."""
        steps: dict[int, Steps] = {}
        for operation in operations:
            home = self._home[operation.source]
            steps.setdefault(home, ([], []))[1].append(operation)
            if operation.kind != pb.Operation.FREE:
                self._put(operation.target, home)
            if operation.kind != pb.Operation.FORK:
                del self._home[operation.source]
        homes = [self._home[row.sequence] for row in rows]
        for row, home in zip(rows, homes, strict=True):
            steps.setdefault(home, ([], []))[0].append(row)
        waits = {home: self._sessions[home].begin(*step) for home, step in steps.items()}

        def wait() -> list[bytes]:
            outputs = {home: iter(each()) for home, each in waits.items()}
            return [next(outputs[home]) for home in homes]

        return wait

    def close(self) -> None:
        """End all; may be called twice, and from any thread."""
        for session in self._sessions:
            session.close()

    def _put(self, sequence: int, lane: int) -> None:
        if self._home.setdefault(sequence, lane) != lane:
            raise InvalidInput("adapter_names: a row has got the cache of another, which has another adapter")
