"""Sessions of the network thread, for the threads that run a model."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from swarm.client.ends import Ends
from swarm.client.matrices import Matrices
from swarm.client.session import Notice, Session
from swarm.client.swarm import Swarm
from swarm.client.training import Training
from swarm.client.training_parts import Found, Passed
from swarm.client.view import View
from swarm.types import ModelInfo, Route, Rows, Span
from swarm.wire import swarm_pb2 as pb
from swarm.wire.splitting import begin_split

ROWS = 256
"""Rows that share a session; servers need not hold more sequences for one. Further rows have sessions of their own."""


class BlockingSession:
    """A session of the network thread, for the thread that runs the model."""

    def __init__(self, swarm: Swarm, session: Session) -> None:
        self._swarm = swarm
        self._session = session

    @property
    def can_rollback(self) -> bool:
        """Whether single positions can be forgotten."""
        return self._session.can_rollback

    def begin(self, rows: Sequence[Rows], operations: Sequence[pb.Operation]) -> Callable[[], list[bytes]]:
        """Issue a step; returns what waits for its outputs."""
        loop = self._swarm.loop
        step = loop.start(self._session.step(rows, operations))
        return lambda: loop.wait(step)

    def settle(self) -> None:
        """Wait for audits of what it gave. Raises Refuted where that is not right."""
        self._swarm.loop.run(self._session.settled())

    def close(self) -> None:
        """End it; may be called twice, and from any thread."""
        self._swarm.end(self._session)


class SpreadSession:
    """As many sessions as a batch needs, as if they were one. What comes of a sequence stays in its session.

    `open_session` begins another; `together`: rows of one text, which may become copies of each other.
    """

    def __init__(self, open_session: Callable[[], BlockingSession], together: int = 1, rows: int = ROWS) -> None:
        self._open = open_session
        self._sessions = [open_session()]
        self._rows = max(rows - rows % together, 1)
        self._new = 0
        self._home: dict[int, int] = {}
        self.held = False
        """Whether its end has to wait for `settle`."""
        self._over = False

    @property
    def can_rollback(self) -> bool:
        """Whether single positions can be forgotten."""
        return all(session.can_rollback for session in self._sessions)

    def begin(self, rows: Sequence[Rows], operations: Sequence[pb.Operation]) -> Callable[[], list[bytes]]:
        """Issue the step of each session; returns what waits for all outputs, in the order of `rows`."""
        self._settle(rows, operations)
        return begin_split(self._sessions, self._home, rows, operations)

    def _settle(self, rows: Sequence[Rows], operations: Sequence[pb.Operation]) -> None:
        """Give each sequence that is new a session."""
        for operation in operations:
            if operation.kind != pb.Operation.FREE:
                self._home[operation.target] = self._home[operation.source]
        for row in rows:
            if row.sequence not in self._home:
                self._home[row.sequence] = self._new // self._rows
                self._new += 1
        while len(self._sessions) <= max(self._home.values(), default=0):
            self._sessions.append(self._open())

    def settle(self) -> None:
        """Wait for audits of what it gave, then end if that was due. Raises Refuted where something is not right."""
        self.held = False
        try:
            for session in self._sessions:
                session.settle()
        finally:
            if self._over:
                self.close()

    def close(self) -> None:
        """End all; may be called twice, and from any thread."""
        self._over = True
        if not self.held:
            for session in self._sessions:
                session.close()


class _Current(threading.local):
    """The call of `generate` that is under way in this thread: the sessions that it began (None outside of one), how
    many rows are of one text, and whether positions will be taken back."""

    sessions: list[SpreadSession] | None = None
    together = 1
    rollback = False


class RemoteBlocks:
    """Where a model's remote blocks are: opens sessions on them and knows the last route.

    `parameters`: numbers in their weights.
    """

    def __init__(self, swarm: Swarm, view: View, span: Span, parameters: int = 0) -> None:
        self.swarm = swarm
        self.view = view
        self.span = span
        self.parameters = parameters
        self.route: Route | None = None
        self.head: Ends | None = None
        """Who computes the head, where servers do."""
        self.on_notice: Callable[[Notice], None] | None = None
        self._current = _Current()

    @property
    def model(self) -> ModelInfo:
        """Whose blocks they are."""
        return self.view.model

    def open(self, matrices: Callable[[Span], bytes] | None = None) -> SpreadSession:
        """Begin a session; servers are asked with its first step. `matrices`: the file of an adapter for some blocks,
        empty for none; None: there is no adapter."""
        adapter = Matrices(matrices)
        rollback = self._current.rollback
        session = SpreadSession(lambda: self._open_one(adapter, rollback), self._current.together)
        if self._current.sessions is not None:
            session.held = self.view.config.audits
            self._current.sessions.append(session)
        return session

    def ends(self, vocabulary: int) -> BlockingEnds:
        """The model's head and embeddings, where servers have them."""
        self.head = Ends(self.swarm.host, self.view, vocabulary, self._hear)
        return BlockingEnds(self.swarm, self.head)

    def training(self) -> Training:
        """What computes whole sequences, and gradients; servers are asked with its first pass."""
        return self.swarm.training(self.view, self.span, self._hear)

    def _open_one(self, matrices: Matrices, rollback: bool) -> BlockingSession:
        session = self.swarm.session(self.view, self.span, self._hear, matrices)
        if rollback:
            session.expect_rollback()
        return BlockingSession(self.swarm, session)

    @contextmanager
    def generating(self, together: int = 1, *, rollback: bool = False) -> Iterator[None]:
        """`together`: rows of one text; `rollback`: positions will be taken back. When this fails, the sessions that it
        began end at once, however long a traceback keeps their caches.

        Raises Refuted when an audit finds out that what they gave is not right.
        """
        current = self._current
        outer = current.sessions, current.together, current.rollback
        current.sessions, current.together, current.rollback = [], together, rollback
        try:
            yield
            for session in current.sessions:
                session.settle()
        except BaseException:
            for session in current.sessions:
                session.held = False
                session.close()
            raise
        finally:
            current.sessions, current.together, current.rollback = outer

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteBlocks:
        """The same blocks of the same swarm, with a route of its own."""
        twin = memo[id(self)] = RemoteBlocks(self.swarm, self.view, self.span, self.parameters)
        twin.on_notice, twin.head = self.on_notice, self.head
        return twin

    def _hear(self, notice: Notice) -> None:
        self.route = notice.route or self.route
        if self.on_notice is not None:
            self.on_notice(notice)


class BlockingEnds:
    """The ends at servers, for the thread that runs the model."""

    def __init__(self, swarm: Swarm, ends: Ends) -> None:
        self.ends = ends
        self._swarm = swarm

    def logits(self, rows: bytes, count: int, best: int) -> tuple[bytes, bytes]:
        """As `Ends.logits`."""
        return self._swarm.loop.run(self.ends.logits(rows, count, best))

    def embeddings(self, tokens: Sequence[int]) -> bytes:
        """As `Ends.embeddings`."""
        return self._swarm.loop.run(self.ends.embeddings(tokens))


class BlockingTraining:
    """Training passes in the network thread, for the thread that runs the model; begun when the first is made.

    `check`: raises InvalidInput where the second of two files is not one of gradients of an adapter's, the first.
    """

    def __init__(self, blocks: RemoteBlocks, check: Callable[[bytes, bytes], None]) -> None:
        self._blocks = blocks
        self._check = check
        self._training: Training | None = None

    def forward(
        self, sequences: Sequence[bytes], matrices: Callable[[Span], bytes], seed: int, first: int | None
    ) -> Passed:
        """As `Training.forward`. `matrices`: the file of an adapter for some blocks, empty for none."""
        if self._training is None:
            self._training = self._blocks.training()
        return self._blocks.swarm.loop.run(
            self._training.forward(sequences, Matrices(matrices, self._check), seed, first)
        )

    def backward(self, passed: Passed, gradients: Sequence[bytes], first: int | None) -> Found:
        """As `Training.backward`."""
        assert self._training is not None
        return self._blocks.swarm.loop.run(self._training.backward(passed, gradients, first))

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockingTraining:
        """Of the twin's blocks."""
        return BlockingTraining(copy.deepcopy(self._blocks, memo), self._check)
