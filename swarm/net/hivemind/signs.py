"""Signs of life over the connections of p2pd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import base58

from swarm.errors import PeerUnreachable, StreamClosed
from swarm.net.addresses import components
from swarm.net.hivemind.daemon import Daemon
from swarm.types import PeerId

PING, PING_BYTES = "/ipfs/ping/1.0.0", 32
"""libp2p's own, which p2pd answers also where its program is busy."""


class Signs:
    """As `pulse.Line`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def sign_of_life(self, peer_id: PeerId) -> None:
        """As in `Line`: p2pd would dial who is not connected."""
        raw = base58.b58decode(peer_id)
        if not any(other == raw for other, _ in await self._daemon.connections()):
            raise PeerUnreachable(f"{peer_id} is not connected")
        reader, writer, _ = await self._daemon.open(raw, PING)
        try:
            writer.write(os.urandom(PING_BYTES))
            await reader.readexactly(PING_BYTES)
        except (OSError, EOFError) as error:
            raise StreamClosed(f"{peer_id} does not answer libp2p's ping: {error}") from error
        finally:
            writer.transport.abort()

    async def online(self, addresses: Sequence[str]) -> bool:
        """As in `Line`: over TCP alone."""
        places = {place for address in addresses if (place := _place(address)) is not None}
        return any(await asyncio.gather(*(_accepts(*place) for place in places)))

    async def drop(self, peer_id: PeerId) -> None:
        """As in `Line`."""
        await self._daemon.disconnect(base58.b58decode(peer_id))


def _place(address: str) -> tuple[str, int] | None:
    """Host and port of a multiaddr over TCP."""
    parts = components(address) or []
    if len(parts) < 2 or parts[1][0] != "tcp" or not parts[1][1].isdecimal():
        return None
    return parts[0][1], int(parts[1][1])


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.transport.abort()
    return True
