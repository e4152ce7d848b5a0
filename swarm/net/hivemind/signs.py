"""Signs of life over the connections of p2pd."""

from __future__ import annotations

import os
from collections.abc import Sequence

import base58

from swarm.errors import PeerUnreachable, StreamClosed
from swarm.net.hivemind.daemon import Daemon
from swarm.net.pulse import PING, PING_BYTES, any_accepts
from swarm.types import PeerId


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
        return await any_accepts(addresses)

    async def drop(self, peer_id: PeerId) -> None:
        """As in `Line`."""
        await self._daemon.disconnect(base58.b58decode(peer_id))
