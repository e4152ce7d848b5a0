"""Connections over TCP, or inside a stream through a forwarder: Noise, then yamux."""

from __future__ import annotations

import contextlib
from typing import Any

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import base58
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from swarm.config import EdgeConfig
from swarm.errors import MalformedFrame, PeerUnreachable
from swarm.net.addresses import components
from swarm.net.edge.listening import Arrive, Listener
from swarm.net.edge.negotiation import select
from swarm.net.edge.websocket import WebSocketListener, keep_alive
from swarm.net.edge.yamux import BoundedYamux
from swarm.net.identity import Identity
from swarm.types import PeerId

NOISE, YAMUX = "/noise", "/yamux/1.0.0"


class TcpBytes(ReadWriteCloser):
    """A TCP connection as libp2p reads and writes it."""

    def __init__(self, tcp: trio.SocketStream) -> None:
        self._tcp = tcp
        self._writing = trio.Lock()

    async def read(self, n: int | None = None) -> bytes:
        try:
            data = await self._tcp.receive_some(n)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(str(error)) from error
        if not data:
            raise ConnectionClosedError("the peer has gone")
        return bytes(data)

    async def write(self, data: bytes) -> None:
        try:
            async with self._writing:
                await self._tcp.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(str(error)) from error

    async def close(self) -> None:
        await trio.aclose_forcefully(self._tcp)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


class CarriedBytes(ReadWriteCloser):
    """A stream to a forwarder as what it carries: the bytes of a connection to somebody else."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        data: bytes = await self._stream.read(n)
        if not data:
            raise ConnectionClosedError("the forwarder has ended the circuit")
        return data

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def close(self) -> None:
        with contextlib.suppress(Exception):  # libp2p raises many kinds
            await self._stream.reset()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


class TcpListener(WebSocketListener):
    """Yamux over Noise over TCP."""

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return tuple(Multiaddr(str(address).removesuffix("/ws")) for address in super().get_addrs())

    async def _bytes_of(self, stream: trio.SocketStream) -> ReadWriteCloser:
        return TcpBytes(stream)


class TcpTransport:
    """Listens and dials for one identity. Lives on trio's loop."""

    def __init__(self, identity: Identity, config: EdgeConfig) -> None:
        self._config = config
        self._keys = create_new_key_pair(identity.private_bytes[4:36])
        self._noise = Noise(self._keys, noise_privkey=create_noise_key_pair().private_key)

    async def listen(self, address: str, arrive: Arrive, nursery: trio.Nursery) -> Listener:
        """Raises OSError when that cannot be listened at."""
        return await TcpListener.start(address, self._keys, self._config, arrive, nursery)

    async def dial(self, address: str, peer_id: PeerId) -> BoundedYamux:
        """A connection to a peer at a multiaddr over TCP. Raises PeerUnreachable."""
        parts = components(address) or [("", "")]
        if len(parts) < 2 or parts[1][0] != "tcp" or [name for name, _ in parts[2:]] not in ([], ["p2p"]):
            raise PeerUnreachable(f"{address} is not spoken without p2pd")
        try:
            tcp = await trio.open_tcp_stream(parts[0][1], int(parts[1][1]))
        except OSError as error:
            raise PeerUnreachable(f"{address}: {error}") from error
        with contextlib.suppress(OSError):
            keep_alive(tcp.socket)
        try:
            return await self.secured(TcpBytes(tcp), peer_id)
        except BaseException:
            await trio.aclose_forcefully(tcp)
            raise

    async def secured(self, carrier: ReadWriteCloser, peer_id: PeerId) -> BoundedYamux:
        """What is carried, once the other side has proved that it is this peer. Raises PeerUnreachable."""
        try:
            raw, peer = RawConnection(carrier, True), ID(base58.b58decode(peer_id))
            if not await select(raw, NOISE):
                raise MalformedFrame("it does not speak Noise")
            secured = await self._noise.secure_outbound(raw, peer)
            if str(secured.get_remote_peer()) != peer_id:
                raise MalformedFrame("somebody else answers there")
            if not await select(secured, YAMUX):
                raise MalformedFrame("it does not speak yamux")
        except Exception as error:  # libp2p raises many kinds
            raise PeerUnreachable(f"{peer_id} does not prove who it is: {error}") from error
        return BoundedYamux(secured, peer, self._config.send_timeout, initiator=True)

    async def close(self) -> None:
        """Nothing is kept."""

    def abandon(self) -> None:
        """Nothing is kept."""
