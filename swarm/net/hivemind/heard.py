"""Streams of bytes over the sockets of p2pd that know when something last came."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import SupportsIndex


class HeardReader(StreamReader):
    """`heard`: when bytes last came, by the loop's time; at first when it was made."""

    def __init__(self, limit: int) -> None:
        self._clock = asyncio.get_running_loop()
        super().__init__(limit, self._clock)
        self.heard = self._clock.time()

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.heard = self._clock.time()
        super().feed_data(data)


async def connect(path: Path, limit: int) -> tuple[HeardReader, StreamWriter]:
    """As `asyncio.open_unix_connection`. Raises OSError."""
    loop, reader = asyncio.get_running_loop(), HeardReader(limit)
    transport, protocol = await loop.create_unix_connection(lambda: StreamReaderProtocol(reader), str(path))
    return reader, StreamWriter(transport, protocol, reader, loop)


async def listen(
    accept: Callable[[HeardReader, StreamWriter], None], path: Path, limit: int, backlog: int
) -> asyncio.Server:
    """As `asyncio.start_unix_server`. Raises OSError."""

    def protocol() -> StreamReaderProtocol:
        reader = HeardReader(limit)
        return StreamReaderProtocol(reader, lambda _, writer: accept(reader, writer))

    return await asyncio.get_running_loop().create_unix_server(protocol, str(path), backlog=backlog)
