"""A stream between two event loops: handlers see it on asyncio's, libp2p keeps it on trio's.

What is buffered between them is bounded in both directions: `send` waits for a peer that does not read, and the peer
waits, or loses the stream, when the handler does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from swarm.config import EdgeConfig
from swarm.errors import FrameTooLarge, MalformedFrame, StreamClosed
from swarm.net.base import PeerStream
from swarm.types import PeerId
from swarm.wire.framing import Length, encode_length

log = logging.getLogger(__name__)

UNSENT = 256 * 1024
"""Bytes that wait to leave before `send` waits, too."""
UNREAD = 256 * 1024
"""Bytes that wait for the handler before libp2p is asked for no more."""
TOO_MUCH = 2 * 1024 * 1024
"""Bytes that may wait for the handler where libp2p cannot make the peer wait."""
PIECE = 64 * 1024

Post = Callable[..., None]
"""Call a function on the other loop, soon: `post(function, *arguments)`."""


class EdgeStream(PeerStream):
    """What a handler holds; satisfies `Stream`. Everything here runs on asyncio's loop."""

    def __init__(self, bridge: Bridge, peer_id: PeerId, post: Post, frame_timeout: float) -> None:
        self._bridge = bridge
        super().__init__(peer_id)
        self._post = post
        self._frame_timeout = frame_timeout
        self._unread = bytearray()
        self._unsent = 0
        self._ended = False
        self._lost = False
        self._closed = False
        self._came = asyncio.Event()
        self._left = asyncio.Event()

    async def _send(self, frame: bytes) -> None:
        self._check()
        while self._unsent > UNSENT:
            self._left.clear()
            await self._left.wait()
            self._check()
        data = encode_length(len(frame)) + frame
        self._unsent += len(data)
        self._post(self._bridge.put, data)

    def _check(self) -> None:
        if self._closed or self._lost:
            raise StreamClosed(f"the stream to {self._peer_id} is closed")

    async def _receive(self, limit: int) -> bytes:
        """Raises StreamClosed also when a part of a frame has come and then nothing for a while."""
        try:
            length = await self._length()
            if length > limit:
                raise FrameTooLarge(f"a frame of {length} bytes, above the limit of {limit}")
            return await self._body(length)
        except (FrameTooLarge, MalformedFrame):
            self._closed = True
            self._post(self._bridge.reset)
            raise
        except TimeoutError:
            self.close()
            raise StreamClosed(f"{self._peer_id} sent a part of a frame and no more") from None

    async def _length(self) -> int:
        """Raises MalformedFrame, StreamClosed, TimeoutError."""
        length = Length()
        while not length.take((await self._take(1, within=self._frame_timeout if length.begun else None))[0]):
            pass
        return length.value

    async def _body(self, length: int) -> bytes:
        body = bytearray()
        while len(body) < length:
            body += await self._take(length - len(body), within=self._frame_timeout)
        return bytes(body)

    async def _take(self, most: int, within: float | None) -> bytes:
        """Between 1 and `most` bytes. Raises StreamClosed, TimeoutError when none comes within so many seconds."""
        async with asyncio.timeout(within):
            while self._closed or not self._unread:
                if self._closed or self._ended or self._lost:
                    raise StreamClosed(f"the stream from {self._peer_id} is closed")
                self._came.clear()
                await self._came.wait()
        taken = bytes(self._unread[:most])
        del self._unread[:most]
        self._post(self._bridge.took, len(taken))
        return taken

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._unread.clear()
            self._wake()
            self._post(self._bridge.finish)

    # ---- called by the bridge, through the loop ----------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        if not self._closed:
            self._unread += data
            self._came.set()

    def written(self, count: int) -> None:
        self._unsent -= count
        if self._unsent <= UNSENT:
            self._left.set()

    def end(self) -> None:
        """The peer says no more."""
        self._ended = True
        self._came.set()

    def lose(self) -> None:
        """Nothing goes in or out any more; what has come can still be received."""
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        self._came.set()
        self._left.set()


class Bridge:
    """The other half of an `EdgeStream`, on trio's loop, where it lives as long as `run` runs.

    `stream` is a libp2p stream of any muxer. `patient` says that it keeps what is not read and makes the peer wait;
    those that are not drop it.
    """

    def __init__(self, stream: Any, config: EdgeConfig, *, patient: bool) -> None:
        self._stream = stream
        self._config = config
        self._patient = patient
        self._outbox: deque[bytes] = deque()
        self._finished = False
        self._changed = trio.Event()
        self._unread = 0
        self._room = trio.Event()
        self._broken = False
        self._scope = trio.CancelScope()

    # ---- called by the stream, through trio --------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        self._outbox.append(data)
        self._changed.set()

    def took(self, count: int) -> None:
        self._unread -= count
        self._room.set()

    def finish(self) -> None:
        self._finished = True
        self._changed.set()
        self._room.set()

    def reset(self) -> None:
        self._broken = True
        self._scope.cancel()

    # ---- trio's tasks ------------------------------------------------------------------------------------------

    async def run(self, stream: EdgeStream, post: Post) -> None:
        """Carry bytes both ways until the handler has closed the stream, or it broke."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry_in, stream, post)
                    await self._carry_out(stream, post)
        finally:
            post(stream.lose)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                if self._scope.cancelled_caught or self._broken:
                    await _quietly(self._stream.reset())

    async def _carry_in(self, stream: EdgeStream, post: Post) -> None:
        while True:
            while self._patient and self._unread >= UNREAD and not self._finished:
                self._room = trio.Event()
                await self._room.wait()
            data = await read_some(self._stream, PIECE)
            if not data:
                break
            if self._finished:
                continue
            self._unread += len(data)
            if self._unread > TOO_MUCH:
                log.debug("a stream is reset: its peer sends faster than it is served")
                self.reset()
                return
            post(stream.feed, data)
        post(stream.end)

    async def _carry_out(self, stream: EdgeStream, post: Post) -> None:
        """Send what the handler sends, then close, and wait a moment for the peer to close as well."""
        while self._outbox or not self._finished:
            while not self._outbox and not self._finished:
                self._changed = trio.Event()
                await self._changed.wait()
            if self._outbox:
                data = self._next()
                if not await self._write(data):
                    self.reset()
                    return
                post(stream.written, len(data))
        with trio.move_on_after(self._config.linger):
            await _quietly(self._stream.close())
        self._scope.deadline = trio.current_time() + self._config.linger

    def _next(self) -> bytes:
        """What is to be sent next; small frames together."""
        data = self._outbox.popleft()
        while self._outbox and len(data) + len(self._outbox[0]) <= PIECE:
            data += self._outbox.popleft()
        return data

    async def _write(self, data: bytes) -> bool:
        """Whether the peer took it in time."""
        view = memoryview(data)
        for begin in range(0, len(data), PIECE):
            with trio.move_on_after(self._config.send_timeout) as patience:
                try:
                    await write_all(self._stream, bytes(view[begin : begin + PIECE]))
                except Exception as error:  # libp2p raises many kinds
                    log.debug("a stream broke: %s", error)
                    return False
            if patience.cancelled_caught:
                log.debug("a stream is reset: its peer does not read")
                return False
        return True


async def read_some(stream: Any, most: int) -> bytes:
    """What has come on a libp2p stream; empty at its end, however it ended."""
    try:
        data: bytes = await stream.read(most)
        return data
    except Exception as error:  # libp2p raises many kinds
        log.debug("a stream ended: %s", error)
        return b""


async def write_all(stream: Any, data: bytes) -> None:
    """Write, and wait for a peer that does not read. Raises what libp2p raises."""
    if not hasattr(stream, "send_window"):
        await stream.write(data)
        return
    # yamux gives up after 5 seconds without a window, and does not say how much it has sent.
    while data:
        while not stream.send_window and not stream.closed:
            await trio.sleep(0.01)
        part, data = data[: stream.send_window], data[stream.send_window :]
        await stream.write(part)


async def _quietly(work: Any) -> None:
    with contextlib.suppress(Exception):
        await work
