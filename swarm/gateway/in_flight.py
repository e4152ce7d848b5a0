"""Positions of one answer on their way through the blocks of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from swarm.client.session import Session
from swarm.speculation.windows import Sent, Window, Windows
from swarm.tasks import ended
from swarm.types import Rows
from swarm.wire import swarm_pb2 as pb
from swarm.wire.places import places_of

Outputs = asyncio.Task[list[bytes]]


class InFlight:
    """The windows of an answer, in a session of their own; `close` ends what is in flight, and not the session.

    `shift`: by how much positions stand further on than they are counted.
    """

    def __init__(self, session: Session) -> None:
        self.shift = 0
        self.windows: Windows[Outputs] = Windows()
        self._session = session
        self._sequence = 1
        self._length = 0
        self._operations: list[pb.Operation] = []
        self._void: set[Outputs] = set()

    def send(self, tokens: Sequence[Sent], hidden: bytes, places: bytes = b"") -> None:
        """Send hidden states; the last ones are those of `tokens`, whose outputs are wanted. `places`: where they
        stand, if not by their number and the shift."""
        count = len(hidden) // self._session.row_bytes
        if self.shift and not places:
            places = places_of(self._length + self.shift, count, 1)
        operations, self._operations = self._operations, []
        step = self._session.step([Rows(self._sequence, hidden, len(tokens), places)], operations)
        self.windows.sent(tokens, asyncio.ensure_future(step), asyncio.get_running_loop().time())
        self._length += count

    async def receive(self) -> tuple[Window[Outputs], list[bytes]]:
        """The oldest window and what the last block gave for each of its tokens. Raises what `Session.step` raises."""
        window = self.windows.oldest()
        (output,) = await window.outputs
        size = self._session.row_bytes
        return window, [output[at : at + size] for at in range(0, len(output), size)]

    def back_to(self, length: int) -> None:
        """Only the first `length` positions count; what is in flight behind them is void."""
        if self._length > length:
            source, self._sequence = self._sequence, self._sequence + 1
            move = pb.Operation(kind=pb.Operation.MOVE, source=source, target=self._sequence, length=length)
            self._operations.append(move)
            self._length = length
        for task in self.windows.void():
            # It ends with the next step, whose operation makes it void.
            self._void.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: Outputs) -> None:
        self._void.discard(task)
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Wait for nothing any more."""
        await ended(*self._void, *self.windows.void())
