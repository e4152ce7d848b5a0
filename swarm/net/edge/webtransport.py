"""WebTransport: for browsers that take a certificate by its hash."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from typing import Any

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import trio
from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamDataReceived, StreamReset
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from libp2p.peer.id import ID
from libp2p.transport.webtransport.config import WebTransportConfig
from libp2p.transport.webtransport.connection import WebTransportConnection, make_server_quic_config
from libp2p.transport.webtransport.listener import WebTransportListener
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from swarm.net.edge.listening import UNSENT, Arrive, Handshakes, abandon

log = logging.getLogger(__name__)

FIRST_PACKET = 1200
"""A QUIC client's first datagram has at least so many bytes."""
IDLE = 30.0
"""Seconds after which a silent QUIC connection is dead; browsers keep theirs alive."""


class BoundedWebTransport(WebTransportConnection):
    """A connection that sleeps while nothing happens, makes writers wait, and whose streams end with it."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.life = trio.CancelScope()
        """Around all that this connection is used for."""
        self.comes_from: str | None = self._remote_addr[0]
        """The ip, while it is in its handshakes."""
        self._armed = trio.Event()
        self._moved = trio.Event()
        self._ended: set[int] = set()
        """Streams of which nothing more comes."""
        self._forgotten: set[int] = set()
        """Streams that nobody here uses any more."""

    async def _timer_loop(self) -> None:
        while not self._closed:
            self._armed = trio.Event()
            at = self._quic.get_timer()
            with trio.move_on_after(IDLE if at is None else max(0.0, at - time.time())):
                await self._armed.wait()
            try:
                if at is not None and at <= time.time():
                    self._quic.handle_timer(now=time.time())
                    await self._process_events()
                await self.transmit()
            except Exception as error:  # aioquic raises many kinds
                log.debug("a connection over WebTransport broke: %r", error)
                self.life.cancel()
                return

    async def transmit(self) -> None:
        before = self._quic.get_timer()
        await super().transmit()
        self._moved.set()
        if self._quic.get_timer() != before:
            self._armed.set()

    async def handle_datagram(self, data: bytes, addr: tuple[str, int]) -> None:
        await super().handle_datagram(data, addr)
        self._armed.set()

    async def _send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        await super()._send_stream_data(stream_id, data, end_stream)
        while not self._closed and self._unsent(stream_id) > UNSENT:
            self._moved = trio.Event()
            await self._moved.wait()

    def _unsent(self, stream_id: int) -> int:
        """Bytes of a stream that the peer has not acknowledged; aioquic has no other way to tell."""
        stream = self._quic._streams.get(stream_id)
        return 0 if stream is None else len(stream.sender._buffer)

    async def _handle_quic_event(self, event: QuicEvent) -> None:
        await super()._handle_quic_event(event)
        if isinstance(event, StreamReset):
            self._end(event.stream_id)
        if isinstance(event, ConnectionTerminated) or self._ends_session(event):
            self.life.cancel()

    def _ends_session(self, event: QuicEvent) -> bool:
        """Whether the stream ends that a browser keeps open as long as the page."""
        if isinstance(event, StreamReset):
            return event.stream_id == self._session_id
        return isinstance(event, StreamDataReceived) and event.end_stream and event.stream_id == self._session_id

    async def _on_wt_stream_data(self, stream_id: int, data: bytes, stream_ended: bool, session_id: int) -> None:
        await super()._on_wt_stream_data(stream_id, data, stream_ended, session_id)
        if stream_ended:
            self._end(stream_id)

    def _end(self, stream_id: int) -> None:
        self._ended.add(stream_id)
        if stream_id in self._forgotten:
            self._drop(stream_id)

    def forget(self, stream: Any) -> None:
        """Drop what libp2p keeps of a stream, once its peer has ended it: what still comes would begin a new one."""
        self._forgotten.add(stream.stream_id)
        if stream.stream_id in self._ended:
            self._drop(stream.stream_id)
        else:
            with contextlib.suppress(Exception):  # aioquic raises many kinds
                self._quic.stop_stream(stream.stream_id, 0)

    def _drop(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        self._ended.discard(stream_id)
        self._forgotten.discard(stream_id)


class BoundedWebTransportListener(WebTransportListener):
    """Makes connections of first packets only, so many at a time, and forgets them when they end."""

    def __init__(
        self, arrive: Arrive, max_handshakes: int, private_key: Any, config: WebTransportConfig, peer: ID
    ) -> None:
        super().__init__(self._arrived, private_key, config, peer)  # type: ignore[arg-type]
        self._arrive = arrive
        self._handshakes = Handshakes(max_handshakes)

    async def begin(self, host: str, port: int, nursery: trio.Nursery) -> None:
        """Listen. libp2p's own way leaves a socket open that cannot be bound, and knows hardly any IPv6."""
        opened = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            await opened.bind((host, port))
        except BaseException:
            opened.close()
            raise
        self._socket, self._bound_port = opened, opened.getsockname()[1]
        await nursery.start(self._run)

    async def _run(self, task_status: Any) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._recv_loop)
            task_status.started()
            await trio.sleep_forever()

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return (Multiaddr(f"/ip4/0.0.0.0/udp/{self._bound_port}/quic-v1/webtransport"),)

    async def _accept_new_connection(
        self, data: bytes, addr: tuple[str, int], dest_cid: bytes
    ) -> WebTransportConnection | None:
        if self._socket is None or self._nursery is None:
            return None
        if not _is_first_packet(data) or not self._handshakes.begin(addr[0]):
            return None
        quic = QuicConnection(
            configuration=make_server_quic_config(self._config), original_destination_connection_id=dest_cid
        )
        connection = BoundedWebTransport(
            quic=quic,
            socket=self._socket,
            remote_addr=addr,
            local_peer_id=self._local_peer_id,
            remote_peer_id=None,
            is_initiator=False,
            config=self._config,
            owns_socket=False,
            nursery=self._nursery,
        )
        self._connections[dest_cid] = self._connections[bytes(quic.host_cid)] = connection
        await connection.start_pump()
        self._nursery.start_soon(self._serve, connection)
        return connection

    def abandon(self) -> None:
        if self._socket is not None:
            abandon(self._socket)

    async def _serve(self, connection: BoundedWebTransport) -> None:
        try:
            with connection.life:
                connection.life.deadline = trio.current_time() + self._config.handshake_timeout
                await self._handle_inbound(connection)
        finally:
            self._end_handshake(connection)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await connection.close()
            self._forget(connection)

    async def _arrived(self, connection: BoundedWebTransport) -> None:
        connection.life.deadline = float("inf")
        self._end_handshake(connection)
        await self._arrive(connection, False)

    def _end_handshake(self, connection: BoundedWebTransport) -> None:
        if connection.comes_from is not None:
            self._handshakes.end(connection.comes_from)
            connection.comes_from = None

    def _forget(self, connection: BoundedWebTransport) -> None:
        for cid in [cid for cid, known in self._connections.items() if known is connection]:
            del self._connections[cid]


def _is_first_packet(data: bytes) -> bool:
    if len(data) < FIRST_PACKET:
        return False
    try:
        return pull_quic_header(Buffer(data=data), host_cid_length=8).packet_type == QuicPacketType.INITIAL
    except ValueError:
        return False
