"""What a hop has computed and not yet handed on, in one epoch, and the task that hands it on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from swarm.errors import StreamClosed
from swarm.net.base import Stream
from swarm.server.promises import NO_CHAINS, Chains
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import RAW, Codec
from swarm.wire.rows import Buffer
from swarm.wire.transcode import frame_of

if TYPE_CHECKING:
    from swarm.net.flight import Flight
    from swarm.types import PeerId

LEAST = 64 * 1024
"""Bytes that a session may have on their way although its client, or all, have too many: decode steps go on."""


class Outbox:
    """A queue of steps on their way out, each encoded when its turn comes. `wanted_only`: the receiver is the client,
    which asked for certain rows.

    `unsent` counts bytes accepted from upstream and not yet handed on, in `flight` on the account of `client`; `room`
    waits while they are too many.
    """

    def __init__(
        self,
        codec: Codec,
        limit: int,
        *,
        flight: Flight,
        client: PeerId,
        wanted_only: bool,
        on_sent: Callable[[pb.Step], None],
        on_given: Callable[[Sequence[pb.Rows], Buffer, Chains], None] = lambda rows, hidden, chains: None,
    ) -> None:
        self.codec = codec
        self.limit = limit
        self.wanted_only = wanted_only
        self.unsent = 0
        self._flight, self._client = flight, client
        self._on_sent = on_sent
        self._on_given = on_given
        self._steps: deque[tuple[pb.Step, int, Chains]] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    async def room(self) -> None:
        """Wait until less than `limit` bytes are on their way, or nothing will be sent any more; only few of its own
        may be while its client, or all, have too many."""
        while self.unsent > self._allowed and not self._closed:
            self._changed.clear()
            await self._changed.wait()

    @property
    def _allowed(self) -> int:
        return self.limit if self._flight.has_room(self._client) else min(self.limit, LEAST)

    def accept(self, nbytes: int) -> None:
        """So many bytes came in, of which something will be put here, or `forget` be called."""
        self._count(nbytes)

    def _count(self, change: int) -> None:
        self.unsent += change
        if not self._closed:
            self._flight.count(self._client, change)

    def put(
        self,
        operations: Sequence[pb.Operation],
        rows: Sequence[pb.Rows],
        hidden: Buffer,
        nbytes: int,
        chains: Chains = NO_CHAINS,
    ) -> None:
        """Queue what one step made of its `nbytes` of input; once closed, forget it.

        `chains`: what is to be promised of it: `on_given` hears of it when it is sent as it is.
        """
        if self._closed:
            return
        if self.wanted_only:
            step = self._wanted(operations, rows, hidden)
        else:
            step = pb.Step(operations=operations, rows=rows, hidden=bytes(hidden))
        self._steps.append((step, nbytes, chains))
        self._changed.set()

    def forget(self, nbytes: int) -> None:
        """Of `nbytes` that were accepted nothing will come."""
        self._count(-nbytes)
        self._changed.set()

    def close(self) -> None:
        """The epoch is over: what was not sent is forgotten."""
        if not self._closed:
            self._flight.count(self._client, -self.unsent)
        self._closed = True
        self._steps.clear()
        self._changed.set()

    def _wanted(self, operations: Sequence[pb.Operation], rows: Sequence[pb.Rows], hidden: Buffer) -> pb.Step:
        step, pieces, end = pb.Step(operations=operations), [], 0
        for row in rows:
            end += row.count * self.codec.raw_bytes
            if row.want:
                pieces.append(hidden[end - row.want * self.codec.raw_bytes : end])
            start = row.start + row.count - row.want
            step.rows.add(sequence=row.sequence, start=start, count=row.want, want=row.want)
        step.hidden = b"".join(pieces)
        return step

    async def drain(self, stream: Stream, stuck: float) -> None:
        """Send for ever. Raises StreamClosed when the stream is lost, or takes nothing for `stuck` seconds."""
        while True:
            while not self._steps:
                self._changed.clear()
                await self._changed.wait()
            step, nbytes, chains = self._steps.popleft()
            if step.hidden or not self.wanted_only:
                await self._send(self._sendable(step), chains, stream, stuck)
            self._count(-nbytes)
            self._changed.set()
            self._on_sent(step)

    async def _send(self, step: pb.Step, chains: Chains, stream: Stream, stuck: float) -> None:
        frame = await frame_of(step, self.codec)
        if chains and self.codec.name == RAW:
            # Before it is sent: whoever has it can have it signed. What a codec makes of it is nothing to stand for.
            self._on_given(step.rows, step.hidden, chains)
        try:
            async with asyncio.timeout(stuck):
                await stream.send(frame)
        except TimeoutError:
            raise StreamClosed(f"{stream.peer_id} has taken nothing for {stuck:.0f} s") from None

    def _sendable(self, step: pb.Step) -> pb.Step:
        if not self.wanted_only:
            return step
        return pb.Step(rows=[row for row in step.rows if row.count], hidden=step.hidden)
