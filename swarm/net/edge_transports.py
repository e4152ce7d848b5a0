"""What browsers can dial: WebRTC-direct, WebTransport and WebSocket, as libp2p's listeners with bounds around them.

Each listener calls `arrive` with every connection whose peer has proved who it is, and closes the connection when that
returns. libp2p's own switch is not used: it keeps a place for every connection that ever came.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Protocol

import swarm.net.protobuf  # noqa: F401  isort: skip  (before libp2p)

import trio
from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamDataReceived, StreamReset
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.webrtc._udp_mux import UdpMux
from libp2p.transport.webrtc.config import WebRTCTransportConfig
from libp2p.transport.webrtc.connection import WebRTCConnection
from libp2p.transport.webrtc.listener import WebRTCDirectListener
from libp2p.transport.webtransport.config import WebTransportConfig
from libp2p.transport.webtransport.connection import WebTransportConnection, make_server_quic_config
from libp2p.transport.webtransport.listener import WebTransportListener
from multiaddr import Multiaddr  # type: ignore[import-untyped]
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Message, Ping, Request
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from swarm.config import EdgeConfig
from swarm.net.edge_certificates import Certificates
from swarm.net.edge_negotiation import negotiate
from swarm.net.identity import Identity

log = logging.getLogger(__name__)

Arrive = Callable[[Any, bool], Awaitable[None]]
"""Takes a libp2p connection with streams, and whether its streams keep what is not read at once."""

UNSENT = 512 * 1024
"""Bytes that a connection holds back before its writers wait."""
YAMUX_UNREAD = 1024 * 1024
"""Bytes that a yamux stream may have sent without being read; its window allows half of it."""
FIRST_PACKET = 1200
"""A QUIC client's first datagram has at least so many bytes."""
_RECEIVE = 64 * 1024
KEEPALIVE = (15, 5, 3)
"""A silent TCP connection is probed after so many seconds, every so many, and is dead after so many."""
SILENCE = 12.0
"""Seconds after which a silent WebRTC connection is dead; browsers check theirs every 3 to 6."""
FIRST_CONTACTS = 2.0
"""New WebRTC connections per second from one ip, after a few at once: it cannot take all places for handshakes."""
IDLE = 30.0
"""Seconds after which a silent QUIC connection is dead; browsers keep theirs alive."""


class Listener(Protocol):
    """One address at which browsers are served."""

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """With the port that it has got; the rest of it is not said."""

    async def close(self) -> None: ...

    def abandon(self) -> None:
        """Free the address, from any thread, after trio's loop has failed."""


class Handshakes:
    """Those under way: so many in all, and from one ip a quarter of that, so that nobody takes all places."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ips: Counter[str] = Counter()

    def begin(self, ip: str) -> bool:
        """Whether there is room; then `end` has to be called."""
        if self._ips.total() >= self._most or self._ips[ip] >= max(1, self._most // 4):
            return False
        self._ips[ip] += 1
        return True

    def end(self, ip: str) -> None:
        self._ips[ip] -= 1
        if not self._ips[ip]:
            del self._ips[ip]


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
            handler_function=_webrtc_arrival(arrive, self._thread),
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
        listener._first_contact_limiter = type(listener._first_contact_limiter)(rate=FIRST_CONTACTS)
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
        await listener.begin(*_place(address), nursery)
        return listener

    async def close(self) -> None:
        self._thread.stop()
        while self._thread.is_running:
            await trio.sleep(0.005)

    def abandon(self) -> None:
        """End the thread of WebRTC, from any other, after trio's loop has failed."""
        self._thread.stop()


def _place(address: str) -> tuple[str, int]:
    """The ip and the port in a multiaddr that begins with them."""
    _, _, ip, _, port = address.split("/")[:5]
    return ip, int(port)


# ---- WebSocket ------------------------------------------------------------------------------------------------


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
    async def start(
        cls, address: str, keys: Any, config: EdgeConfig, arrive: Arrive, nursery: trio.Nursery
    ) -> WebSocketListener:
        host, port = _place(address)
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
            websocket = WebSocket(stream)
            await websocket.accept()
            raw = RawConnection(websocket, False)
            await negotiate(raw, ("/noise",))
            secured = await self._noise.secure_inbound(raw)
            await negotiate(secured, ("/yamux/1.0.0",))
            return BoundedYamux(secured, secured.get_remote_peer(), self._config.send_timeout)

    async def close(self) -> None:
        self._scope.cancel()

    def abandon(self) -> None:
        for listening in self._sockets:
            _abandon(listening.socket)


def _abandon(trio_socket: Any) -> None:
    """Close a socket of trio's without trio."""
    if trio_socket.fileno() >= 0:
        os.close(trio_socket.detach())


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


class BoundedYamux(Yamux):
    """Yamux that holds its peer to what it may send, and never writes a frame in part."""

    def __init__(self, secured: Any, peer: ID, send_timeout: float) -> None:
        super().__init__(secured, peer, is_initiator=False)
        self._send_timeout = send_timeout

    def rtt(self) -> float:
        """So short that no window grows for its sake: to 16 MiB it would, for each stream that is not read."""
        return 1e-9

    async def _read_data_body(self, length: int) -> bytes:
        held = max((len(buffer) for buffer in self.stream_buffers.values()), default=0)
        if max(held, length) > YAMUX_UNREAD:
            raise trio.TooSlowError("the peer ignores yamux's windows")
        return await super()._read_data_body(length)

    async def _write_frame(self, data: bytes) -> None:
        """A frame that was interrupted would take the connection's ciphers out of step."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._send_timeout) as patience:
            await super()._write_frame(data)
        if patience.cancelled_caught:
            self.event_shutting_down.set()
            self.new_stream_send_channel.close()
            raise ConnectionClosedError("the peer takes nothing any more")


# ---- WebTransport ---------------------------------------------------------------------------------------------


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
            _abandon(self._socket)

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


# ---- WebRTC ---------------------------------------------------------------------------------------------------


class AttentiveMux(UdpMux):
    """libp2p's shared socket, which also remembers when each peer was last heard."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: dict[tuple[str, int], float] = {}

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        super().datagram_received(data, addr)
        place = (addr[0], addr[1])
        if place in self._by_addr:
            self._heard[place] = time.monotonic()
        elif len(self._heard) > 2 * len(self._by_addr) + 64:
            self._heard = {place: at for place, at in self._heard.items() if place in self._by_addr}

    def free(self) -> None:
        """Close the socket, if it is open, from within its loop."""
        if self._transport is not None:
            self._transport.abort()

    def last_heard(self, protocols: Sequence[Any]) -> float:
        """When something came for these last, by the monotonic clock."""
        places = [place for place, protocol in self._by_addr.items() if protocol in protocols]
        return max((self._heard.get(place, 0.0) for place in places), default=0.0)


class Channels:
    """The data channels that a browser opened on one WebRTC connection, under the numbers that libp2p gives them."""

    def __init__(self, connection: Any, mux: AttentiveMux) -> None:
        self._peer_connection = connection
        self._mux = mux
        self._open: dict[int, Any] = {}
        self._count = 0
        connection.on("datachannel", self._add)

    def _add(self, channel: Any) -> None:
        self._open[2 * self._count + 1] = channel
        self._count += 1

    def attach(self, connection: WebRTCConnection, thread: AsyncioThread) -> None:
        """Make writers of `connection` wait for a slow peer, and end it when WebRTC's connection ends."""
        send = connection._send_on_channel_cb
        token = trio.lowlevel.current_trio_token()

        async def patiently(number: int, data: bytes) -> None:
            await send(number, data)
            while self._unsent() > UNSENT:
                await asyncio.sleep(0.01)

        def end() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(connection._accept_send.close)

        def forget(stream: Any) -> None:
            connection.remove_stream(stream.channel_id)
            thread.call(self._drop, stream.channel_id)

        connection._send_on_channel_cb = patiently
        connection.forget = forget  # type: ignore[attr-defined]
        thread.schedule_fire_and_forget(self._watch(end))

    async def _watch(self, end: Callable[[], None]) -> None:
        """Call `end` when the peer has gone. A tab that is closed says nothing."""
        ice = self._peer_connection.sctp.transport.transport._connection
        while self._peer_connection.connectionState == "connected":
            if self._mux.last_heard(ice._protocols) < time.monotonic() - SILENCE:
                break
            await asyncio.sleep(SILENCE / 12)
        end()

    def _unsent(self) -> int:
        return sum(channel.bufferedAmount for channel in self._open.values() if channel.readyState == "open")

    def _drop(self, number: int) -> None:
        channel = self._open.pop(number, None)
        if channel is not None:
            channel.close()


_channels: ContextVar[Channels] = ContextVar("channels")
"""Of the connection whose handshake the present task does."""


class WebRTCListener(WebRTCDirectListener):
    """libp2p's, which also tells of the channels of each connection."""

    async def _bind_listener_sockets(
        self, bridge: Any, host: str, port: int, rtc_cert: Any
    ) -> tuple[AttentiveMux, int]:
        mux, bound = await bridge.run_coro(AttentiveMux.create(host, port))
        bridge.muxes.append(mux)
        return mux, bound

    def abandon(self) -> None:
        """Nothing to do: its socket belongs to the thread of WebRTC."""

    async def _finish_inbound(self, pc: Any, *arguments: Any) -> None:
        _channels.set(Channels(pc, self._mux))  # type: ignore[arg-type]
        await super()._finish_inbound(pc, *arguments)


def _webrtc_arrival(arrive: Arrive, thread: AsyncioThread) -> Callable[[Any], Awaitable[None]]:
    async def arrived(connection: WebRTCConnection) -> None:
        _channels.get().attach(connection, thread)
        await arrive(connection, False)

    return arrived


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """aiortc's tasks fail when their connection has gone, and nobody waits for them."""
    log.debug("within WebRTC: %s", context.get("exception") or context.get("message"))


class AsyncioThread:
    """The event loop of aiortc, in a thread of its own; what libp2p calls an asyncio bridge.

    libp2p's own waits in one of trio's few threads for each answer, so that silent strangers can use them all up.
    """

    def __init__(self) -> None:
        self.muxes: list[AttentiveMux] = []
        """Sockets to be closed when the loop ends."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Unless it runs already."""
        if self._thread is None:
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(_unheard)
            self._thread = threading.Thread(
                target=self._run, args=(self._loop, self.muxes), name="swarm-edge-rtc", daemon=True
            )
            self._thread.start()

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop, muxes: Sequence[AttentiveMux]) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            for mux in muxes:
                mux.free()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    async def run_coro(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` there and wait for it here, on trio's loop; cancelling the wait cancels the work."""
        future = self._submit(work)
        done, token = trio.Event(), trio.lowlevel.current_trio_token()

        def wake(_: Future[Any]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        future.add_done_callback(wake)
        try:
            await done.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        return future.result()

    def schedule_fire_and_forget(self, work: Coroutine[Any, Any, Any]) -> None:
        with contextlib.suppress(RuntimeError):
            self._submit(work)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function there, soon, if it still runs."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *arguments)

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._loop is None or self._loop.is_closed():
            work.close()
            raise RuntimeError("the thread of WebRTC has ended")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """End the loop and the thread, soon. May be called twice."""
        if self._loop is not None:
            self.call(self._loop.stop)
