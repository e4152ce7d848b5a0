"""A stream through p2pd, and what becomes of it after it was closed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from asyncio import StreamWriter

from swarm.errors import FrameTooLarge, MalformedFrame, StreamClosed
from swarm.net.base import PeerStream
from swarm.net.hivemind.heard import HeardReader
from swarm.types import PeerId
from swarm.wire.framing import read_frame, write_frame

LINGER = 10.0
"""Seconds that what was sent before a stream was closed may take to leave."""
SETTLE = 0.5
"""Seconds after the last words when a stream may be ended: over QUIC p2pd ends it by a reset, which overtakes them."""


class HivemindStream(PeerStream):
    """A stream through p2pd; satisfies `Stream`. In `siblings` from its making until it is closed.

    When it is closed soon after its last words, it is in `ending` until those may be taken to have arrived.
    """

    __slots__ = ("_begun", "_closed", "_ending", "_reader", "_siblings", "_writer", "sent", "spoke")

    def __init__(
        self,
        peer_id: PeerId,
        reader: HeardReader,
        writer: StreamWriter,
        siblings: set[HivemindStream],
        ending: set[Farewell],
    ) -> None:
        super().__init__(peer_id)
        self._reader = reader
        self._writer = writer
        self._begun = reader.heard
        self._closed = False
        self.sent = 0
        """Bytes."""
        self.spoke = -SETTLE
        """When it last sent any, by the loop's time."""
        self._siblings = siblings
        self._ending = ending
        siblings.add(self)

    @property
    def heard(self) -> float:
        """When bytes last came, by the loop's time; -1 where none did: p2pd's own word at the beginning is none."""
        return self._reader.heard if self._reader.heard > self._begun else -1.0

    async def _send(self, frame: bytes) -> None:
        if self._closed or self._writer.is_closing():
            raise StreamClosed(f"the stream to {self._peer_id} is closed")
        try:
            write_frame(self._writer, frame)
            self.sent += len(frame)
            self.spoke = asyncio.get_running_loop().time()
            await self._writer.drain()
        except OSError as error:
            raise StreamClosed(f"the stream to {self._peer_id} was lost: {error}") from error

    async def _receive(self, limit: int) -> bytes:
        if self._closed:
            raise StreamClosed(f"the stream from {self._peer_id} is closed")
        try:
            if self._flight is None:
                return await read_frame(self._reader, limit)
            return await read_frame(self._reader, limit, functools.partial(self._flight.reading, self._peer_id))
        except (FrameTooLarge, MalformedFrame):
            self.close()
            raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._siblings.discard(self)
        if not self._writer.transport.is_closing():
            with contextlib.suppress(RuntimeError, OSError):  # the loop, or p2pd, may have ended
                Farewell.take_over(self._writer, self.spoke + SETTLE, self._ending)


class Farewell(asyncio.Protocol):
    """What a stream is after it was closed: what was sent still leaves, what comes is thrown away.

    Closing the socket instead would make p2pd reset the stream when it holds something that nobody has read, and
    lose the last words on their way out.
    """

    def __init__(self, writer: StreamWriter, ending: set[Farewell]) -> None:
        self._writer = writer  # whose finaliser would complain
        self._ending = ending
        loop = asyncio.get_running_loop()
        self._timers = [loop.call_later(LINGER, writer.transport.abort)]

    @classmethod
    def take_over(cls, writer: StreamWriter, settled: float, ending: set[Farewell]) -> None:
        """Become the protocol of `writer`, whose readers and writers hear that the connection was lost.

        The other side hears it by the loop's time `settled`, or ends the stream itself before.
        """
        transport, loop, farewell = writer.transport, asyncio.get_running_loop(), cls(writer, ending)
        before = transport.get_protocol()
        transport.set_protocol(farewell)
        before.connection_lost(None)
        if settled > loop.time():
            ending.add(farewell)
            farewell._timers.append(loop.call_at(settled, farewell._end))
        else:
            farewell._end()
        # Both: an end that the reader has seen already is only shown again to who begins to read.
        transport.pause_reading()  # type: ignore[attr-defined]
        transport.resume_reading()  # type: ignore[attr-defined]

    def _end(self) -> None:
        self._ending.discard(self)
        with contextlib.suppress(RuntimeError, OSError):
            self._writer.transport.write_eof()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._ending.discard(self)
        for timer in self._timers:
            timer.cancel()
