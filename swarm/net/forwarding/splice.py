"""Two byte streams made one: what comes from either goes to the other, as fast as that takes it."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterable

from swarm.net.quota import Bucket
from swarm.tasks import ended, until_first

CHUNK = 256 * 1024
HALF_OPEN = 10.0
"""Seconds for one side to end after the other: what is carried is a connection, whose halves mean nothing alone."""

Ends = tuple[StreamReader, StreamWriter]


class Splice:
    """Carries until both sides have ended, one is lost, or nothing has come for `idle` seconds.

    `carried`: bytes so far, of both directions.
    """

    def __init__(self, one: Ends, other: Ends, pace: Bucket, idle: float) -> None:
        self.carried = 0
        self._one, self._other = one, other
        self._pace = pace
        self._idle = idle
        self._moved = 0.0

    async def run(self) -> None:
        """Carry. Never raises but the caller's cancellation; both streams are closed afterwards."""
        loop = asyncio.get_running_loop()
        self._moved = loop.time()
        (reader, writer), (reader2, writer2) = self._one, self._other
        ways = [asyncio.ensure_future(way) for way in (self._carry(reader, writer2), self._carry(reader2, writer))]
        try:
            with contextlib.suppress(OSError):
                await until_first(asyncio.ensure_future(_all(ways)), self._until_idle())
                for way in (writer, writer2):
                    way.close()
        finally:
            await ended(*ways)
            for way in (writer, writer2):
                if not way.is_closing():
                    way.transport.abort()

    async def _carry(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One direction, to its end. Raises OSError when either side is lost."""
        loop = asyncio.get_running_loop()
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            self._moved = loop.time()
            self.carried += len(chunk)
            await writer.drain()
            if wait := self._pace.take(len(chunk), loop.time()):
                await asyncio.sleep(wait)
        writer.write_eof()

    async def _until_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while (left := self._moved + self._idle - loop.time()) > 0:
            await asyncio.sleep(left)


async def _all(ways: Iterable[asyncio.Future[None]]) -> None:
    """Until both are done, or one fails, or takes too long to follow the other. Raises OSError."""
    done, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in done:
        way.result()
    async with asyncio.timeout(HALF_OPEN):
        await asyncio.gather(*left)
