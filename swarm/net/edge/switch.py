"""What a host by libp2p's Python implementation does on trio's loop: connections in, streams out of them."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import ifaddr
import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from swarm._version import __version__
from swarm.config import EdgeConfig
from swarm.errors import EdgeFailed, ServerBusy
from swarm.net.base import StreamHandler
from swarm.net.edge.listening import Arrive, Listener
from swarm.net.edge.negotiation import negotiate
from swarm.net.edge.stream import PIECE, Bridge, EdgeStream, read_some, write_all
from swarm.net.guard import REFUSALS
from swarm.net.identity import Identity
from swarm.types import PeerId
from swarm.wire.framing import encode_length

log = logging.getLogger(__name__)

IDENTIFY = "/ipfs/id/1.0.0"
PING = "/ipfs/ping/1.0.0"
BUSY = 5.0
"""Seconds after which a peer that opened too many streams may come again."""
_LOOK = 2.0
"""How often the thread looks whether asyncio's loop is still there."""
CLOSING = 5.0
"""Seconds that the thread may take to end."""


class Makes(Protocol):
    """What makes listeners, on trio's loop."""

    async def listen(self, address: str, arrive: Arrive, nursery: trio.Nursery) -> Listener:
        """Raises OSError and what libp2p raises when that cannot be listened at."""

    async def close(self) -> None: ...

    def abandon(self) -> None:
        """Free what there is, from any thread, after trio's loop has failed."""


class Switch:
    """The half of a host on trio's loop. `post` reaches asyncio's loop; `make` is called there, once."""

    def __init__(
        self,
        identity: Identity,
        config: EdgeConfig,
        make: Callable[[], Makes],
        handlers: dict[str, StreamHandler],
        post: Callable[..., None],
        begin: Callable[[EdgeStream, str], None],
    ) -> None:
        self._identity = identity
        self._config = config
        self._make = make
        self._handlers = handlers
        self._post = post
        self._begin = begin
        self._listeners: list[Listener] = []
        self._transports: Makes | None = None
        self._addresses: tuple[str, ...] = ()
        self._bound: tuple[str, ...] = ()
        self._connections: Counter[PeerId] = Counter()
        self._streams: Counter[PeerId] = Counter()
        self._lives: set[trio.CancelScope] = set()
        """One for each connection."""
        self._token: trio.lowlevel.TrioToken | None = None
        self._stopping = trio.Event()
        self._stopped = False

    def listening(self) -> tuple[str, ...]:
        """Multiaddrs without hashes and peer ids, from any thread."""
        return self._addresses

    def bound(self) -> tuple[str, ...]:
        """The addresses of the configuration with the ports that they have got; empty before that, from any thread."""
        return self._bound

    def stop(self) -> None:
        """From any thread."""
        self._stopped = True
        self._call(self._stopping.set)

    def abandon(self) -> None:
        """Free what may be left, once `run` has ended, however it did."""
        for listener in self._listeners:
            listener.abandon()
        if self._transports is not None:
            self._transports.abandon()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on trio's loop, from any thread. Raises StreamClosed when that has ended."""
        if self._token is None:
            return
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *arguments)

    async def run(self, ready: Callable[[], None]) -> None:
        """Listen until `stop` is called. Raises EdgeFailed when that is impossible."""
        self._token = trio.lowlevel.current_trio_token()
        if self._stopped:
            return
        transports = self._transports = self._make()
        async with trio.open_nursery() as nursery:
            try:
                for address in self._config.host_maddrs:
                    self._listeners.append(await self._listen(transports, address, nursery))
                bound = (str(listener.get_addrs()[0]) for listener in self._listeners)
                self._bound = tuple(map(with_port, self._config.host_maddrs, bound))
                self._addresses = tuple(each for address in self._bound for each in everywhere(address))
                ready()
                while not self._stopping.is_set():
                    # An edge that was left behind without a word ends as well.
                    self._post(_nothing)
                    with trio.move_on_after(_LOOK):
                        await self._stopping.wait()
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSING / 2):
                    await self._say_goodbye()
                    for listener in self._listeners:
                        await listener.close()
                    await transports.close()
            nursery.cancel_scope.cancel()

    async def _say_goodbye(self) -> None:
        """Close connections while what they are made of still works, so that their peers hear of it."""
        with trio.move_on_after(CLOSING / 4):
            while self._lives:
                for life in list(self._lives):
                    life.cancel()
                await trio.sleep(0.01)

    async def _listen(self, transports: Makes, address: str, nursery: trio.Nursery) -> Listener:
        try:
            return await transports.listen(address, self._arrive, nursery)
        except Exception as error:  # libp2p raises many kinds
            raise EdgeFailed(f"the edge cannot listen at {address}: {error}") from error

    # ---- connections -------------------------------------------------------------------------------------------

    async def _arrive(self, connection: Any, patient: bool) -> None:
        """Serve a connection as long as it lives."""
        peer_id = str(connection.peer_id)
        self._lives.add(life := trio.CancelScope())
        try:
            with life:
                if self._admits(peer_id):
                    await self._serve_connection(connection, peer_id, patient)
        except Exception as error:  # libp2p raises many kinds, alone and in groups
            log.debug("a connection of %s broke: %r", peer_id, error)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0), contextlib.suppress(Exception):
                await connection.close()
            self._lives.discard(life)

    def _admits(self, peer_id: PeerId) -> bool:
        if self._stopping.is_set():
            return False
        few = self._connections[peer_id] < self._config.max_connections_per_peer
        if not few or self._connections.total() >= self._config.max_connections:
            log.info("a connection of %s is refused: too many", peer_id)
            return False
        return True

    async def _serve_connection(self, connection: Any, peer_id: PeerId, patient: bool) -> None:
        self._connections[peer_id] += 1
        log.debug("%s has come", peer_id)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.start)
                await connection.event_started.wait()
                await self._accept_streams(connection, peer_id, patient, nursery)
                nursery.cancel_scope.cancel()
        finally:
            log.debug("%s has gone", peer_id)
            _one_less(self._connections, peer_id)

    async def _accept_streams(self, connection: Any, peer_id: PeerId, patient: bool, nursery: trio.Nursery) -> None:
        while True:
            try:
                stream = await connection.accept_stream()
            except Exception as error:  # libp2p raises many kinds
                log.debug("the connection of %s ended: %s", peer_id, error)
                return
            nursery.start_soon(self._serve_stream, connection, stream, peer_id, patient)

    # ---- streams -----------------------------------------------------------------------------------------------

    async def _serve_stream(self, connection: Any, stream: Any, peer_id: PeerId, patient: bool) -> None:
        busy = self._busy(peer_id)
        self._streams[peer_id] += 1
        try:
            with contextlib.suppress(Exception):  # libp2p raises many kinds
                await self._carry_stream(stream, peer_id, patient, busy)
        finally:
            _one_less(self._streams, peer_id)
            if forget := getattr(connection, "forget", None):
                forget(stream)

    def _busy(self, peer_id: PeerId) -> ServerBusy | None:
        if self._streams[peer_id] >= self._config.max_streams_per_peer:
            return ServerBusy(f"you have {self._streams[peer_id]} streams open, which is all you may", BUSY)
        if self._streams.total() >= self._config.max_streams:
            return ServerBusy("too many streams are open", BUSY)
        return None

    async def _carry_stream(self, stream: Any, peer_id: PeerId, patient: bool, busy: ServerBusy | None) -> None:
        protocol = None
        try:
            # Who has opened twice as many as allowed does not listen to refusals.
            if self._streams[peer_id] <= 2 * self._config.max_streams_per_peer:
                with trio.move_on_after(self._config.negotiation_timeout):
                    protocol = await negotiate(stream, (IDENTIFY, PING, *self._handlers))
        finally:
            if protocol is None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                    await stream.reset()
        if protocol == IDENTIFY:
            await self._identify(stream)
        elif protocol == PING:
            await self._answer_pings(stream)
        elif protocol and busy:
            await self._refuse(stream, protocol, busy)
        elif protocol:
            await self._hand_over(stream, peer_id, protocol, patient)

    async def _hand_over(self, stream: Any, peer_id: PeerId, protocol: str, patient: bool) -> None:
        """To the handler on asyncio's loop, until it has closed the stream."""
        bridge = Bridge(stream, self._config, patient=patient)
        handed = EdgeStream(bridge, peer_id, self._call, self._config.frame_timeout)
        self._post(self._begin, handed, protocol)
        await bridge.run(handed, self._post)

    async def _refuse(self, stream: Any, protocol: str, busy: ServerBusy) -> None:
        with trio.move_on_after(self._config.negotiation_timeout):
            if refusal := REFUSALS.get(protocol):
                frame = refusal(busy)
                await write_all(stream, encode_length(len(frame)) + frame)
            await stream.close()

    async def _answer_pings(self, stream: Any) -> None:
        while data := await read_some(stream, PIECE):
            with trio.fail_after(self._config.send_timeout):
                await write_all(stream, data)
        await stream.close()

    async def _identify(self, stream: Any) -> None:
        about = Identify(
            protocol_version="ipfs/0.1.0",
            agent_version=f"swarm/{__version__}",
            public_key=self._identity.public_bytes,
            listen_addrs=[Multiaddr(address).to_bytes() for address in self._addresses],
            protocols=[IDENTIFY, PING, *self._handlers],
        ).SerializeToString()
        with trio.fail_after(self._config.negotiation_timeout):
            await write_all(stream, encode_length(len(about)) + about)
            await stream.close()


def _nothing() -> None:
    pass


def _one_less(counter: Counter[PeerId], peer_id: PeerId) -> None:
    counter[peer_id] -= 1
    if not counter[peer_id]:
        del counter[peer_id]


# ---- addresses --------------------------------------------------------------------------------------------------


def with_port(address: str, bound: str) -> str:
    """`address` with the port of `bound`."""
    parts = address.split("/")
    return "/".join([*parts[:4], bound.split("/")[4], *parts[5:]])


def everywhere(address: str) -> list[str]:
    """An address that is listened at, or, for an ip that means all of them, those of every interface."""
    _, version, ip, rest = address.split("/", 3)
    ips = interfaces(version) if ipaddress.ip_address(ip).is_unspecified else [ip]
    return [f"/{version}/{each}/{rest}" for each in ips]


def interfaces(version: str) -> list[str]:
    """This machine's addresses, `ip4` or `ip6`, those first that others may reach."""
    loopback = "127.0.0.1" if version == "ip4" else "::1"
    found = (str(ip.ip) if ip.is_IPv4 else str(ip.ip[0]) for each in ifaddr.get_adapters() for ip in each.ips)
    others = [ip for ip in found if (":" in ip) == (version == "ip6") and not ipaddress.ip_address(ip).is_link_local]
    return [*(ip for ip in dict.fromkeys(others) if ip != loopback), loopback]
