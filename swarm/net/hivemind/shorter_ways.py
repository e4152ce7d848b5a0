"""Notices when a peer to which streams go through a forwarder is connected directly, as when a hole was punched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import TYPE_CHECKING

import base58

from swarm.errors import SwarmError
from swarm.tasks import Tasks

if TYPE_CHECKING:
    from swarm.net.base import Stream
    from swarm.net.hivemind.holes import Holes
    from swarm.types import PeerId

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks at the connections, while there are such streams."""


class ShorterWays:
    """`connections`: every connection there is, the other peer and its multiaddr; raises NetworkError. `living`: the
    streams that are open. `holes`: how a direct one is tried for."""

    def __init__(
        self,
        connections: Callable[[], Awaitable[Sequence[tuple[bytes, str]]]],
        living: Container[Stream],
        holes: Holes | None = None,
    ) -> None:
        self._connections = connections
        self._living = living
        self._holes = holes
        self._long: dict[PeerId, list[Stream]] = {}
        self._through: dict[PeerId, PeerId] = {}
        self._tasks = Tasks(log)
        self._looking: asyncio.Task[None] | None = None

    def opened(self, stream: Stream, address: str) -> None:
        """A stream was opened from here, on the connection with this multiaddr."""
        before, circuit, _ = address.partition("/p2p-circuit")
        if circuit:
            self._through[stream.peer_id] = before.rpartition("/p2p/")[2]
            self._long.setdefault(stream.peer_id, []).append(stream)
            if self._looking is None or self._looking.done():
                self._looking = self._tasks.spawn(self._look(), name="looking for shorter ways")

    async def _look(self) -> None:
        while self._long:
            await asyncio.sleep(LOOK_EVERY)
            for peer_id, streams in list(self._long.items()):
                self._long[peer_id] = [stream for stream in streams if stream in self._living]
                if not self._long[peer_id]:
                    del self._long[peer_id], self._through[peer_id]
            try:
                connections = await self._connections()
            except SwarmError as error:
                log.debug("the connections cannot be looked at: %s", error)
                continue
            for raw, address in connections:
                if "/p2p-circuit" not in address:
                    self._shorten(base58.b58encode(raw).decode())
            if self._holes is not None:
                self._holes.look(self._through)

    def _shorten(self, peer_id: PeerId) -> None:
        self._through.pop(peer_id, None)
        if self._holes is not None:
            self._holes.direct(peer_id)
        for stream in self._long.pop(peer_id, ()):
            stream.outdated.set()

    async def close(self) -> None:
        """Look no more."""
        await self._tasks.close()
        if self._holes is not None:
            await self._holes.close()
