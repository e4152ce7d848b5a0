"""Positions of one answer on their way through the blocks: what is certain, and guesses behind it.

As in `swarm.models.speculation.decoding`, which does this for `generate`: windows follow each other without waiting,
and when a guess turns out wrong, what was sent after it is void, and the sequence goes on from the last position that
was right.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.client.session import Session
from swarm.speculation.pacer import MOST, WINDOW
from swarm.types import Rows
from swarm.wire import swarm_pb2 as pb

Sent = tuple[int, int | None]
"""A token, and the kind of its draft; None: it is certain."""


@dataclass(slots=True, eq=False)
class Window:
    """Tokens whose outputs are awaited; `sent`: when, by the loop's clock; `alone`: nothing else was on its way."""

    tokens: list[Sent]
    outputs: asyncio.Task[list[bytes]]
    sent: float
    alone: bool


class WindowsInFlight:
    """The windows of an answer, in a session of their own; `close` ends what is on its way, and not the session."""

    most = MOST // WINDOW + 1
    """Windows on their way at once."""
    largest = WINDOW
    """Drafts in each."""

    def __init__(self, session: Session) -> None:
        self.windows: deque[Window] = deque()
        self._session = session
        self._sequence = 1
        self._length = 0
        self._operations: list[pb.Operation] = []
        self._void: set[asyncio.Task[list[bytes]]] = set()

    @property
    def drafts(self) -> list[int]:
        """The tokens on their way that are not certain."""
        return [token for window in self.windows for token, kind in window.tokens if kind is not None]

    def send(self, tokens: Sequence[Sent], hidden: bytes) -> None:
        """Send hidden states; the last ones are those of `tokens`, whose outputs are wanted."""
        operations, self._operations = self._operations, []
        step = self._session.step([Rows(self._sequence, hidden, len(tokens))], operations)
        sent, alone = asyncio.get_running_loop().time(), not self.windows
        self.windows.append(Window(list(tokens), asyncio.ensure_future(step), sent, alone))
        self._length += len(hidden) // self._session.row_bytes

    async def receive(self) -> tuple[Window, list[bytes]]:
        """The oldest window and what the last block gave for each of its tokens. Raises what `Session.step` raises."""
        window = self.windows.popleft()
        (output,) = await window.outputs
        size = self._session.row_bytes
        return window, [output[at : at + size] for at in range(0, len(output), size)]

    def following(self, window: Window) -> list[Sent]:
        """What was sent behind each token of the window, as far as something was."""
        return [*window.tokens[1:], *(later.tokens[0] for later in list(self.windows)[:1])]

    def confirm(self) -> None:
        """The first token on its way is certain by now."""
        token, _ = self.windows[0].tokens[0]
        self.windows[0].tokens[0] = (token, None)

    def back_to(self, length: int) -> None:
        """Only the first `length` positions count; what is on its way behind them is void."""
        if self._length > length:
            source, self._sequence = self._sequence, self._sequence + 1
            move = pb.Operation(kind=pb.Operation.MOVE, source=source, target=self._sequence, length=length)
            self._operations.append(move)
            self._length = length
        while self.windows:
            # They end with the next step, whose operation makes them void.
            self._void.add(task := self.windows.pop().outputs)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[list[bytes]]) -> None:
        self._void.discard(task)
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Wait for nothing any more."""
        tasks = [*self._void, *(window.outputs for window in self.windows)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
