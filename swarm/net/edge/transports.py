"""Makes what browsers can dial: libp2p's listeners with bounds around them.

Each listener calls `arrive` with every connection whose peer has proved who it is, and closes the connection when that
returns. libp2p's own switch is not used: it keeps a place for every connection that ever came.
"""

from __future__ import annotations

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.transport.webrtc.config import WebRTCTransportConfig
from libp2p.transport.webtransport.config import WebTransportConfig
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from swarm.config import EdgeConfig
from swarm.net.edge.certificates import Certificates
from swarm.net.edge.listening import Arrive, Listener, place_of
from swarm.net.edge.webrtc import FIRST_CONTACTS, AsyncioThread, WebRTCListener, arrival
from swarm.net.edge.websocket import WebSocketListener
from swarm.net.edge.webtransport import IDLE, BoundedWebTransportListener
from swarm.net.identity import Identity
from swarm.net.patches import limit_first_contacts


class Transports:
    """Makes listeners for one identity. Lives on trio's loop."""

    def __init__(self, identity: Identity, config: EdgeConfig, certificates: Certificates) -> None:
        self._config = config
        self._certificates = certificates
        self._keys = create_new_key_pair(identity.private_bytes[4:36])
        self._peer = ID.from_pubkey(self._keys.public_key)
        self._thread = AsyncioThread()

    async def listen(self, address: str, arrive: Arrive, nursery: trio.Nursery) -> Listener:
        """Raises OSError and what libp2p raises when that cannot be listened at."""
        if "/webrtc-direct" in address:
            return await self._webrtc(address, arrive)
        if "/webtransport" in address:
            return await self._webtransport(address, arrive, nursery)
        return await WebSocketListener.start(address, self._keys, self._config, arrive, nursery)

    async def _webrtc(self, address: str, arrive: Arrive) -> Listener:
        self._thread.start()

        async def bridge() -> AsyncioThread:
            return self._thread

        listener = WebRTCListener(
            handler_function=arrival(arrive, self._thread),
            private_key=self._keys.private_key,
            certificate=self._certificates.webrtc,
            config=WebRTCTransportConfig(
                certificate=self._certificates.webrtc,
                ice_servers=[],
                handshake_timeout=self._config.handshake_timeout,
                max_in_flight_connections=self._config.max_handshakes,
                # The switch counts streams. Here a refused channel would get no number, see `Channels`.
                max_concurrent_streams=1 << 30,
            ),
            bridge_factory=bridge,
            local_peer_id=self._peer,
        )
        limit_first_contacts(listener, FIRST_CONTACTS)
        await listener.listen(Multiaddr(address))
        return listener

    async def _webtransport(self, address: str, arrive: Arrive, nursery: trio.Nursery) -> Listener:
        config = WebTransportConfig(
            cert_manager=self._certificates,  # type: ignore[arg-type]
            handshake_timeout=self._config.handshake_timeout,
            idle_timeout=IDLE,
        )
        listener = BoundedWebTransportListener(
            arrive, self._config.max_handshakes, self._keys.private_key, config, self._peer
        )
        await listener.begin(*place_of(address), nursery)
        return listener

    async def close(self) -> None:
        self._thread.stop()
        while self._thread.is_running:
            await trio.sleep(0.005)

    def abandon(self) -> None:
        """End the thread of WebRTC, from any other, after trio's loop has failed."""
        self._thread.stop()
