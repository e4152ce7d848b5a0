"""A wide-area network on one machine: any host, with streams that delay what is sent on them.

Each peer shapes what it sends, so both directions of a link are shaped when both its ends are wrapped. For measuring
and trying out; the directory is not shaped.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence

from swarm.errors import StreamClosed, SwarmError
from swarm.net.base import Host, HostStatistics, PeerStream, Stream, StreamHandler
from swarm.tasks import Tasks, ended
from swarm.testing.conditions import Line, LinkConditions
from swarm.types import PeerId

log = logging.getLogger(__name__)

WINDOW = 1 << 20
"""Bytes under way on a stream before `send` waits."""
EARLY = 0.0005
"""Seconds by which frames leave early: an event loop wakes up to a millisecond late, half of one on average."""
CONNECTING = 3
"""Round trips to a new peer: two p2pd over a TCP connection that took 100 ms there and back needed 330 ms."""
FLUSH = 10.0
"""Seconds that what was sent before the end may take."""


class DelayedStream(PeerStream):
    """A stream whose frames, and whose end, arrive later; satisfies `Stream`."""

    def __init__(self, stream: Stream, line: Line, link: LinkConditions, tasks: Tasks, early: float = EARLY) -> None:
        super().__init__(stream.peer_id)
        self._outdated = stream.outdated
        self._stream = stream
        self._line = line
        self._link = link
        self._early = early
        self._under_way: deque[tuple[float, bytes | None]] = deque()
        self._pending = 0
        self._last = 0.0
        self._closed = False
        self._broken: SwarmError | None = None
        self._changed = asyncio.Event()
        self._reader: asyncio.Future[bytes] | None = None
        self._sender = tasks.spawn(self._deliver(), name="a long line")

    async def _send(self, frame: bytes) -> None:
        self._check()
        self._put(bytes(frame))
        while self._pending > WINDOW:
            self._changed.clear()
            await self._changed.wait()
            self._check()

    def _check(self) -> None:
        if self._closed or self._broken is not None:
            raise StreamClosed(f"the stream to {self.peer_id} is closed") from self._broken

    def _put(self, frame: bytes | None) -> None:
        now, size = asyncio.get_running_loop().time(), len(frame or b"")
        self._last = max(self._last, self._line.arrival(now, size, self._link))
        self._under_way.append((self._last, frame))
        self._pending += size
        self._changed.set()

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                while not self._under_way:
                    self._changed.clear()
                    await self._changed.wait()
                due, frame = self._under_way.popleft()
                if (left := due - self._early - loop.time()) > 0:
                    await asyncio.sleep(left)
                if frame is None:
                    return
                await self._stream.send(frame)
                self._pending -= len(frame)
                self._changed.set()
        except SwarmError as error:
            self._broken = error
        finally:
            self._pending = 0
            self._changed.set()
            self._stream.close()

    async def _receive(self, limit: int) -> bytes:
        if self._closed:
            raise StreamClosed(f"the stream from {self.peer_id} is closed")
        self._reader = asyncio.ensure_future(self._stream.receive(limit))
        try:
            return await self._reader
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise StreamClosed(f"the stream from {self.peer_id} was closed") from None
        finally:
            if not self._reader.done():
                await ended(self._reader)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._reader is not None:
            self._reader.cancel()
        self._put(None)

    async def flushed(self) -> None:
        """Wait until everything has left, for a while."""
        await asyncio.wait({self._sender}, timeout=FLUSH)


class DelayedHost:
    """A host behind long lines; satisfies `Host`.

    The first stream with a peer waits `CONNECTING` round trips for a connection; others open without, as p2pd's do.
    """

    def __init__(self, host: Host, link: LinkConditions, seed: int = 0, early: float = EARLY) -> None:
        self.host = host
        self.link = link
        self._random = random.Random(seed)
        self._early = early
        self._lines: dict[PeerId, Line] = {}
        self._tasks = Tasks(log)

    @property
    def peer_id(self) -> PeerId:
        return self.host.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return self.host.addresses

    async def open_stream(self, peer_id: PeerId, protocol: str, addresses: Sequence[str] = ()) -> DelayedStream:
        if peer_id not in self._lines:
            await asyncio.sleep(CONNECTING * 2 * self.link.delay)
        return self._wrap(await self.host.open_stream(peer_id, protocol, addresses))

    def _wrap(self, stream: Stream) -> DelayedStream:
        line = self._lines.setdefault(stream.peer_id, Line(self._random))
        return DelayedStream(stream, line, self.link, self._tasks, self._early)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        async def wrapped(stream: Stream) -> None:
            delayed = self._wrap(stream)
            try:
                await handler(delayed)
            finally:
                delayed.close()
                await delayed.flushed()

        await self.host.serve(protocol, wrapped)

    def statistics(self) -> HostStatistics:
        return self.host.statistics()

    async def close(self) -> None:
        await self._tasks.close()
        await self.host.close()
