"""Bytes that have come from peers and have not gone on: large frames are read only while there is room for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from swarm.net.quota import Places
from swarm.types import PeerId

SMALL = 64 * 1024
"""Frames up to this size are always read: the steps of those who read what they asked for wait for nobody."""


class Flight:
    """At most `per_peer` bytes of one peer's, `total` of all, but for what is small."""

    def __init__(self, per_peer: int, total: int) -> None:
        self.places = Places(per_peer, total)
        self._freed = asyncio.Event()

    def has_room(self, peer: PeerId) -> bool:
        """Whether a peer may have more in flight than it has."""
        return self.places.allows(peer, SMALL)

    def count(self, peer: PeerId, change: int) -> None:
        """So many bytes of a peer's more are in flight, or fewer."""
        if change > 0:
            self.places.take(peer, change)
        elif change < 0:
            self.places.give(peer, -change)
            self._freed.set()
            self._freed = asyncio.Event()

    async def freed(self) -> None:
        """Wait until something is not in flight any more."""
        await self._freed.wait()

    @contextlib.asynccontextmanager
    async def reading(self, peer: PeerId, size: int) -> AsyncIterator[None]:
        """Around the reading of a frame of `size` bytes; waits for room first, unless it is small."""
        if size <= SMALL:
            yield
            return
        while not self.places.allows(peer, size):
            await self.freed()
        self.count(peer, size)
        try:
            yield
        finally:
            self.count(peer, -size)
