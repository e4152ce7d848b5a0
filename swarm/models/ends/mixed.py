"""Rows of one batch through different sessions, each with an adapter of its own, as if there were one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swarm.errors import InvalidInput
from swarm.models.ends.remote_cache import RemoteSession
from swarm.types import Rows
from swarm.wire import swarm_pb2 as pb
from swarm.wire.splitting import begin_split


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
        for operation in operations:
            if operation.kind != pb.Operation.FREE:
                self._put(operation.target, self._home[operation.source])
        return begin_split(self._sessions, self._home, rows, operations)

    def close(self) -> None:
        """End all; may be called twice, and from any thread."""
        for session in self._sessions:
            session.close()

    def _put(self, sequence: int, lane: int) -> None:
        if self._home.setdefault(sequence, lane) != lane:
            raise InvalidInput("adapter_names: a row has got the cache of another, which has another adapter")
