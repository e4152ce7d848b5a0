"""WebSocket: for pages that came over http, or from this machine."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import Any, Self

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import trio
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr  # type: ignore[import-untyped]
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Message, Ping, Request
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from swarm.config import EdgeConfig
from swarm.net.edge.listening import Arrive, Handshakes, abandon, place_of
from swarm.net.edge.negotiation import negotiate
from swarm.net.edge.yamux import BoundedYamux

log = logging.getLogger(__name__)

_RECEIVE = 64 * 1024
KEEPALIVE = (15, 5, 3)
"""A silent TCP connection is probed after so many seconds, every so many, and is dead after so many."""


class WebSocketListener:
    """Yamux over Noise over WebSocket over TCP."""

    def __init__(self, sockets: Sequence[trio.SocketListener], keys: Any, config: EdgeConfig, arrive: Arrive) -> None:
        self._sockets = sockets
        self._noise = Noise(keys, noise_privkey=create_noise_key_pair().private_key)
        self._config = config
        self._arrive = arrive
        self._handshakes = Handshakes(config.max_handshakes)
        self._scope = trio.CancelScope()

    @classmethod
    async def start(cls, address: str, keys: Any, config: EdgeConfig, arrive: Arrive, nursery: trio.Nursery) -> Self:
        host, port = place_of(address)
        sockets = await trio.open_tcp_listeners(port, host=host)
        for listening in sockets:
            keep_alive(listening.socket)
        listener = cls(sockets, keys, config, arrive)
        nursery.start_soon(listener._run)
        return listener

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        names = [listening.socket.getsockname() for listening in self._sockets]
        return tuple(Multiaddr(f"/ip{6 if ':' in n[0] else 4}/{n[0]}/tcp/{n[1]}/ws") for n in names)

    async def _run(self) -> None:
        with self._scope:
            await trio.serve_listeners(self._accept, list(self._sockets))

    async def _accept(self, stream: trio.SocketStream) -> None:
        try:
            await self._serve(stream)
        except Exception as error:  # libp2p and wsproto raise many kinds, alone and in groups
            log.debug("a connection over WebSocket ended: %r", error)
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_close_when_cancelled, stream)
            ip = str(stream.socket.getpeername()[0])
            if self._handshakes.begin(ip):
                try:
                    connection = await self._handshake(stream)
                finally:
                    self._handshakes.end(ip)
                await self._arrive(connection, True)
            nursery.cancel_scope.cancel()

    async def _handshake(self, stream: trio.SocketStream) -> Yamux:
        with trio.fail_after(self._config.handshake_timeout):
            raw = RawConnection(await self._bytes_of(stream), False)
            await negotiate(raw, ("/noise",))
            secured = await self._noise.secure_inbound(raw)
            await negotiate(secured, ("/yamux/1.0.0",))
            return BoundedYamux(secured, secured.get_remote_peer(), self._config.send_timeout)

    async def _bytes_of(self, stream: trio.SocketStream) -> ReadWriteCloser:
        """What a connection's handshake is to be read from."""
        websocket = WebSocket(stream)
        await websocket.accept()
        return websocket

    async def close(self) -> None:
        self._scope.cancel()

    def abandon(self) -> None:
        for listening in self._sockets:
            abandon(listening.socket)


async def _close_when_cancelled(stream: trio.SocketStream) -> None:
    """So that nobody who may not be interrupted while he writes waits for this socket any longer."""
    try:
        await trio.sleep_forever()
    finally:
        await trio.aclose_forcefully(stream)


class WebSocket(ReadWriteCloser):
    """The server's side of a WebSocket as a stream of bytes. What strangers may make it hold is bounded."""

    def __init__(self, tcp: trio.SocketStream) -> None:
        self._tcp = tcp
        self._protocol = WSConnection(ConnectionType.SERVER)
        self._accepted = False
        self._unread = bytearray()
        self._writing = trio.Lock()

    async def accept(self) -> None:
        """Wait for the opening handshake and agree. Raises IOException, and what wsproto raises."""
        while not self._accepted:
            await self._receive()

    async def _receive(self) -> None:
        data = await self._tcp.receive_some(_RECEIVE)
        if not data:
            raise ConnectionClosedError("the peer has gone")
        self._protocol.receive_data(data)
        for event in self._protocol.events():
            await self._handle(event)

    async def _handle(self, event: Event) -> None:
        if isinstance(event, Request):
            self._accepted = True
            await self._send(AcceptConnection())
        elif isinstance(event, Ping):
            await self._send(event.response())
        elif isinstance(event, CloseConnection):
            raise ConnectionClosedError("the peer closed")
        elif isinstance(event, Message):
            self._unread += event.data.encode() if isinstance(event.data, str) else event.data

    async def _send(self, event: Event) -> None:
        data = self._protocol.send(event)
        async with self._writing:
            await self._tcp.send_all(data)

    async def read(self, n: int | None = None) -> bytes:
        try:
            while not self._unread:
                await self._receive()
        except (trio.BrokenResourceError, trio.ClosedResourceError, RemoteProtocolError) as error:
            raise ConnectionClosedError(str(error)) from error
        data = bytes(self._unread[:n])
        del self._unread[:n]
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self._send(BytesMessage(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError) as error:
            raise ConnectionClosedError(str(error)) from error

    async def close(self) -> None:
        with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError, LocalProtocolError):
            await self._send(CloseConnection(code=1000))
        await trio.aclose_forcefully(self._tcp)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


def keep_alive(listening: Any) -> None:
    """Connections that a TCP listener accepts from now on notice that the other machine has gone."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    options = (idle, getattr(socket, "TCP_KEEPINTVL", None), getattr(socket, "TCP_KEEPCNT", None))
    for option, value in zip(options, KEEPALIVE, strict=True):
        if option is not None:
            listening.setsockopt(socket.IPPROTO_TCP, option, value)
