"""Peers that dial as browsers do, with py-libp2p's dialers: trio in a thread, driven from asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import trio
import trio_websocket
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.webrtc.config import WebRTCTransportConfig
from libp2p.transport.webrtc.connection import WebRTCConnection
from libp2p.transport.webrtc.transport import WebRTCDirectTransport
from libp2p.transport.websocket.connection import P2PWebSocketConnection
from libp2p.transport.webtransport.connection import WebTransportConnection
from libp2p.transport.webtransport.transport import WebTransportTransport
from multiaddr import Multiaddr

from swarm.net.identity import Identity
from swarm.wire.framing import encode_length


class Browser:
    """One peer with connections of its own. Every method but `close` runs on asyncio's loop."""

    def __init__(self) -> None:
        self.identity = Identity.generate()
        self.patience = 10.0
        self._keys = create_new_key_pair(self.identity.private_bytes[4:36])
        self._started = threading.Event()
        self._held = threading.Event()
        self._closers: list[Callable[[], Awaitable[Any]]] = []
        self._thread = threading.Thread(target=trio.run, args=(self._main,), name="browser")
        self._thread.start()
        self._started.wait()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._leaving = trio.Event()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._started.set()
            await self._leaving.wait()
            for closer in self._closers:
                with trio.move_on_after(1), contextlib.suppress(Exception):
                    await closer()
            nursery.cancel_scope.cancel()

    async def call(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Run something of libp2p's on trio, from asyncio."""
        return await asyncio.to_thread(trio.from_thread.run, function, *arguments, trio_token=self._token)

    async def dial(self, address: str) -> Any:
        """A libp2p connection to an edge."""
        return await self.call(self._dial, address)

    async def _dial(self, address: str) -> Any:
        if "/webrtc-direct" in address:
            rtc = WebRTCDirectTransport(self._keys.private_key, WebRTCTransportConfig(handshake_timeout=5.0))
            self._closers.append(rtc.close)
            connection = await rtc.dial(Multiaddr(address))
            self._closers.insert(0, connection.close)
            return connection
        if "/webtransport" in address:
            quic = WebTransportTransport(self._keys.private_key)
            self._closers.append(quic.close)
            session = await quic.dial(Multiaddr(address))
            self._closers.append(functools.partial(_close_socket, session))
            return session
        return await self._dial_websocket(Multiaddr(address))

    async def _dial_websocket(self, address: Multiaddr) -> Yamux:
        host, port = address.value_for_protocol("ip4"), address.value_for_protocol("tcp")
        tcp = await trio.open_tcp_stream(host, int(port))
        self._closers.append(functools.partial(trio.aclose_forcefully, tcp))
        socket = await trio_websocket.wrap_client_stream(self._nursery, tcp, f"{host}:{port}", "/")
        raw = RawConnection(P2PWebSocketConnection(socket), True)
        await MultiselectClient().select_one_of(["/noise"], MultiselectCommunicator(raw))
        noise = Noise(self._keys, noise_privkey=create_noise_key_pair().private_key)
        peer = ID.from_base58(str(address).rpartition("/p2p/")[2])
        secured = await noise.secure_outbound(raw, peer)
        await MultiselectClient().select_one_of(["/yamux/1.0.0"], MultiselectCommunicator(secured))
        yamux = Yamux(secured, peer, is_initiator=True)
        self._nursery.start_soon(yamux.start)
        await yamux.event_started.wait()
        self._closers.insert(0, yamux.close)
        return yamux

    async def open(self, connection: Any, protocol: str) -> Sink:
        """A stream under `protocol` on a connection that `dial` made."""
        return await self.call(self._open, connection, protocol)

    async def _open(self, connection: Any, protocol: str) -> Sink:
        stream = await connection.open_stream()
        with trio.fail_after(self.patience):
            await MultiselectClient().select_one_of([protocol], MultiselectCommunicator(stream))
        return Sink(self, stream)

    async def hold(self, sink: Sink) -> None:
        """Take nothing more of what comes over the connection of `sink`, and say nothing, until `let_go`."""
        connection = sink.stream.muxed_conn
        if isinstance(connection, WebTransportConnection):
            connection.handle_datagram = _ignore  # type: ignore[method-assign]
            connection.transmit = _ignore  # type: ignore[assignment]
        elif isinstance(connection, WebRTCConnection):
            assert connection._bridge.loop is not None
            connection._bridge.loop.call_soon_threadsafe(self._held.wait, 10)
        # yamux makes its peer wait by itself when nobody reads.

    def let_go(self) -> None:
        """The end of a `hold` over WebRTC."""
        self._held.set()

    def close(self) -> None:
        self.let_go()
        self._token.run_sync_soon(self._leaving.set)
        self._thread.join()


class Sink:
    """A stream of frames as the dialer sees it."""

    def __init__(self, browser: Browser, stream: Any) -> None:
        self.browser = browser
        self.stream = stream

    async def send(self, frame: bytes) -> None:
        await self.write(encode_length(len(frame)) + frame)

    async def write(self, data: bytes) -> None:
        await self.browser.call(self._write, data)

    async def _write(self, data: bytes) -> None:
        with trio.fail_after(30):
            await self.stream.write(data)

    async def receive(self) -> bytes | None:
        """The next frame; None at the end, however it came."""
        return await self.browser.call(self._receive)

    async def _receive(self) -> bytes | None:
        try:
            with trio.fail_after(30):
                length = shift = 0
                while (byte := (await self._exactly(1))[0]) & 0x80:
                    length, shift = length | (byte & 0x7F) << shift, shift + 7
                return await self._exactly(length | byte << shift)
        except trio.TooSlowError:
            raise
        except Exception:
            return None

    async def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await self.stream.read(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    async def close_write(self) -> None:
        """Say no more, but go on listening."""
        await self.browser.call(getattr(self.stream, "_close_write", self.stream.close))

    async def reset(self) -> None:
        await self.browser.call(self.stream.reset)

    async def close(self) -> None:
        await self.browser.call(self.stream.close)


async def _close_socket(session: WebTransportConnection) -> None:
    """libp2p forgets it when the other side has closed."""
    session._socket.close()


async def _ignore(*arguments: Any) -> None:
    pass
