"""A host whose connections p2pd holds, the daemon that hivemind brings."""

from __future__ import annotations

import asyncio
import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import swarm.net.patches  # noqa: F401  isort: skip  (before hivemind)

import base58
from hivemind.p2p import P2P
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr as HivemindMultiaddr
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from swarm.config import NetworkConfig
from swarm.errors import DaemonFailed, InvalidInput, PeerUnreachable, SwarmError
from swarm.net.addresses import best_first, check, own, with_ports
from swarm.net.base import HostStatistics, StreamHandler, serve_stream
from swarm.net.forwarding.reach import Reach
from swarm.net.forwarding.ways import answering, parted
from swarm.net.guard import Guard
from swarm.net.hivemind.callers import Caller, RawHandler
from swarm.net.hivemind.daemon import STREAM_BUFFER, Daemon, Refused
from swarm.net.hivemind.heard import HeardReader, listen
from swarm.net.hivemind.holes import Holes
from swarm.net.hivemind.knock import knock
from swarm.net.hivemind.reachability import Found, Reachability
from swarm.net.hivemind.shorter_ways import ShorterWays
from swarm.net.hivemind.signs import Signs
from swarm.net.hivemind.stream import SETTLE, Farewell, HivemindStream
from swarm.net.identity import Identity
from swarm.net.ports import check_free
from swarm.net.pulse import Pulse
from swarm.tasks import Tasks, ended
from swarm.types import PeerId
from swarm.wire.framing import read_frame

if TYPE_CHECKING:
    from swarm.net.hivemind.directory import HivemindDirectory

log = logging.getLogger(__name__)

_STREAM_INFO_LIMIT = 64 * 1024
_SHORTEST_PEER_ID = 34
_BACKLOG = 4096
"""Streams that peers may open while this loop is busy; one more is lost."""
_TOLD = 2
"""Addresses of a peer that cannot be reached that are told of."""
_THROUGH = 5.0
"""Seconds for a connection through a forwarder to be made."""
_OTHERS = 0.5
"""How long a joining peer waits for further initial peers once one has answered."""


class HivemindHost:
    """A peer whose connections p2pd holds; satisfies `Host`."""

    def __init__(self, config: NetworkConfig, identity: Identity, daemon: Daemon) -> None:
        self.config = config
        self.identity = identity
        self.daemon = daemon
        self.joined: tuple[str, ...] = ()
        """The initial peers that answered."""
        self.visible: tuple[str, ...] = ()
        """The addresses that p2pd believes to have."""
        self.guard = Guard(config.limits)
        self.reachability = Reachability(self)
        self._p2p: P2P | None = None
        self._addresses: tuple[str, ...] = ()
        self._handlers: dict[str, StreamHandler] = {}
        self._raw_handlers: dict[str, RawHandler] = {}
        self._server: asyncio.Server | None = None
        self._socket = daemon.folder / "streams.sock"
        self._streams: set[HivemindStream] = set()
        holes = Holes(partial(knock, self.open_raw, identity), lambda: self.visible)
        self._ways = ShorterWays(daemon.connections, self._streams, holes)
        self._pulse = Pulse(Signs(daemon), self._streams, self._kept, lambda: self.joined)
        self._ending: set[Farewell] = set()
        self._serving, self._background = Tasks(log), Tasks(log)

    async def begin(self) -> None:
        """Connect to p2pd and join the swarm. Raises DaemonFailed, PeerUnreachable, InvalidInput."""
        peer_id, _ = await self.daemon.identify()
        if peer_id != self.peer_id:
            raise DaemonFailed(f"p2pd took the identity {self.peer_id} for {peer_id}: another version of it?")
        await self.refresh_addresses()
        self._server = await listen(self._accept, self._socket, STREAM_BUFFER, _BACKLOG)
        await self._join()

    async def settle(self, found: Found | None = None) -> None:
        """Begin to forward, or to be forwarded to; `found`: how others reach this peer. Raises DaemonFailed."""
        if found is not None:
            self.reachability.found = found
        await self.reachability.begin()
        self.compose_addresses()
        self._background.spawn(self._refresh(), name="addresses")
        if (tether := self.reachability.tether) is not None:
            self._background.spawn(tether.run(), name="forwarders")

    def keep_known(self, directory: HivemindDirectory) -> None:
        """Tell the directory of this peer if it is a forwarder, and learn of others if it needs them."""
        self._background.spawn(self.reachability.keep_known(directory), name="forwarders in the directory")

    def retire(self) -> None:
        """As in `Network`."""
        self.reachability.retire()

    def _kept(self) -> Sequence[PeerId]:
        """The forwarders through which others reach this peer."""
        tether = self.reachability.tether
        return tether.held if tether is not None else ()

    async def p2p(self) -> P2P:
        """hivemind's own view of the same daemon, for its DHT."""
        if self._p2p is None:
            self._p2p = await P2P.replicate(HivemindMultiaddr(f"/unix{self.daemon.control}"))
        return self._p2p

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return self._addresses

    # ---- streams ----------------------------------------------------------------------------------------------

    async def open_stream(self, peer_id: PeerId, protocol: str, addresses: Sequence[str] = ()) -> HivemindStream:
        raw = _raw_peer_id(peer_id)
        try:
            async with asyncio.timeout(self.config.dial_timeout):
                if addresses:
                    await self._meet(peer_id, addresses)
                reader, writer, address = await self.daemon.open(raw, protocol)
        except (Refused, TimeoutError) as error:
            raise self._unreachable(peer_id, addresses, error) from error
        stream = HivemindStream(peer_id, reader, writer, self._streams, self._ending)
        self._ways.opened(stream, address)
        self._pulse.opened(stream)
        return stream

    async def _meet(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        """Connect to a peer unless it is connected, by whatever way is there first. Raises Refused, DaemonFailed."""
        raw, (direct, circuits) = _raw_peer_id(peer_id), parted(addresses)
        if not circuits or any(other == raw for other, _ in await self.daemon.connections()):
            await self.daemon.connect(raw, _dialable(peer_id, addresses))
            return
        ways = [asyncio.ensure_future(self._through(peer_id, circuits))]
        if direct:
            ways.append(asyncio.ensure_future(self.daemon.connect(raw, _dialable(peer_id, direct))))
        try:
            pending = set(ways)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if any(way.exception() is None for way in done):
                    return
            ways[0].result()
        finally:
            await ended(*ways)

    async def _through(self, peer_id: PeerId, circuits: dict[PeerId, list[str]]) -> None:
        """Connect through a forwarder, the first that answers and can. Raises Refused, DaemonFailed."""
        refused = Refused(f"of its forwarders ({', '.join(f'…{peer[-6:]}' for peer in circuits)}) none answers")
        async with aclosing(answering(self.reachability, circuits)) as forwarders:
            async for addresses in forwarders:
                try:
                    await self.daemon.connect(_raw_peer_id(peer_id), _dialable(peer_id, addresses), _THROUGH)
                except Refused as error:
                    refused = error
                else:
                    return
        raise refused

    def _unreachable(self, peer_id: PeerId, addresses: Sequence[str], error: Exception) -> SwarmError:
        if self.daemon.died.is_set():
            return self.daemon.failure()
        reason = f"no answer for {self.config.dial_timeout:.0f} s" if isinstance(error, TimeoutError) else str(error)
        more = f" and {len(addresses) - _TOLD} more" if len(addresses) > _TOLD else ""
        where = f" at {', '.join(best_first(addresses)[:_TOLD])}{more}" if addresses else ""
        return PeerUnreachable(f"{peer_id} cannot be reached{where}: {reason}").attach(peer=peer_id)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        known = protocol in self._handlers
        self._handlers[protocol] = handler
        if not known:
            await self.daemon.register(protocol, self._socket)

    async def serve_raw(self, protocol: str, handler: RawHandler) -> None:
        """As `serve`, with the bytes of the stream as they are: the handler ends it, and raises nothing."""
        known = protocol in self._raw_handlers
        self._raw_handlers[protocol] = handler
        if not known:
            await self.daemon.register(protocol, self._socket)

    async def open_raw(self, peer: bytes, protocol: str) -> tuple[StreamReader, StreamWriter]:
        """The bytes of a stream to a peer that is connected. Raises Refused, DaemonFailed."""
        reader, writer, _ = await self.daemon.open(peer, protocol)
        return reader, writer

    def _accept(self, reader: HeardReader, writer: StreamWriter) -> None:
        self._serving.spawn(self._begin_stream(reader, writer), name="stream")

    async def _begin_stream(self, reader: HeardReader, writer: StreamWriter) -> None:
        try:
            info = p2pd_pb2.StreamInfo.FromString(await read_frame(reader, _STREAM_INFO_LIMIT))
            peer_id = base58.b58encode(info.peer).decode()
            if raw := self._raw_handlers.get(info.proto):
                await raw(Caller(peer_id, str(Multiaddr(info.addr))), reader, writer)
                return
            handler = self._handlers[info.proto]
            stream = HivemindStream(peer_id, reader, writer, self._streams, self._ending)
        except BaseException as error:
            writer.transport.abort()
            if not isinstance(error, Exception):
                raise
            log.debug("a stream ended before it began: %s", error)
            return
        await serve_stream(handler, stream, info.proto, log)

    # ---- joining ----------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        """Connect to the initial peers; one that answers is enough. Raises PeerUnreachable, InvalidInput."""
        dials = {asyncio.create_task(self.dial(p, a)): a for p, a in self._initial().items()}
        try:
            reached = await _some(dials)
            missed = [f"{addresses[0]}: {_reason(dial)}" for dial, addresses in dials.items() if dial not in reached]
        finally:
            await ended(*dials)
        if missed and reached:
            log.warning("initial peers that did not answer, and are asked again later:\n  %s", "\n  ".join(missed))
        elif missed:
            raise PeerUnreachable(
                "none of the initial peers answered; check that they run, that their addresses are right and that "
                "this machine may reach them:\n  " + "\n  ".join(missed)
            )
        self.joined = tuple(address for dial in reached for address in dials[dial])

    def _initial(self) -> dict[PeerId, list[str]]:
        """The addresses of each initial peer but ourselves."""
        peers: dict[PeerId, list[str]] = {}
        for address in self.config.initial_peers:
            peer_id = _peer_in(address)
            if peer_id != self.peer_id:
                peers.setdefault(peer_id, []).append(address)
        return peers

    async def dial(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        """Connect to a peer unless it is connected. Raises PeerUnreachable, DaemonFailed."""
        try:
            async with asyncio.timeout(self.config.dial_timeout):
                await self.daemon.connect(_raw_peer_id(peer_id), _dialable(peer_id, addresses))
        except (Refused, TimeoutError) as error:
            raise self._unreachable(peer_id, (), error) from error

    async def _refresh(self) -> None:
        """Addresses change (port mappings, relays), and bootstrap peers restart."""
        while not self.daemon.died.is_set():
            await asyncio.sleep(self.config.refresh)
            try:
                await self.refresh_addresses()
                await asyncio.gather(*(self.dial(p, a) for p, a in self._initial().items()), return_exceptions=True)
            except SwarmError as error:
                log.debug("cannot read the addresses anew: %s", error)

    async def lost(self) -> NoReturn:
        """Wait until p2pd ends unasked, after which this host is of no use. Raises DaemonFailed then."""
        await self.daemon.died.wait()
        raise self.daemon.failure()

    async def refresh_addresses(self) -> None:
        """Ask p2pd where others can see this host; done by itself now and then. Raises DaemonFailed."""
        _, visible = await self.daemon.identify()
        self.visible = tuple(visible)
        self.compose_addresses()

    def compose_addresses(self) -> None:
        """Put together anew what others are told, of what is known now."""
        chosen = self.reachability.addresses(self.visible)
        self._addresses = tuple(own(address, self.peer_id) for address in chosen)
        if self._kept():
            self._pulse.look()

    def statistics(self) -> HostStatistics:
        return HostStatistics(len(self._streams), len(self._serving))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for stream in list(self._streams):
            stream.close()
        await self._ways.close()
        await self._background.close()
        await self._pulse.close()
        await self._serving.close()
        await self._settle()
        if self._p2p is not None:
            await self._p2p.shutdown()
        await self.daemon.stop()

    async def _settle(self) -> None:
        """Let last words arrive, if p2pd still carries them."""
        patience = asyncio.get_running_loop().time() + SETTLE
        while self._ending and not self.daemon.died.is_set() and asyncio.get_running_loop().time() < patience:
            await asyncio.sleep(0.02)


async def create_host(config: NetworkConfig) -> HivemindHost:
    """Start p2pd and join the swarm.

    Raises DaemonFailed when p2pd does not start, PeerUnreachable when no initial peer answers, InvalidInput when the
    identity file or an address is broken.
    """
    check(config)
    identity = Identity.load_or_create(config.identity_path)
    for address in config.announce_maddrs:
        own(address, identity.peer_id)
    check_free(config.host_maddrs)
    host = await _begun(config, identity, Reach.PUBLIC if config.public else Reach.UNKNOWN)
    try:
        found = None
        if not config.public and host.joined:
            found = await host.reachability.find_out()
        forwards = found is not None and found.reach is Reach.PUBLIC and config.forward is not None
        if found is not None and config.dialled and (forwards or found.reach is Reach.NAT):
            # p2pd believes it only at its start: then it tells others at once through whom it is reached, or that it
            # can carry for them.
            again = replace(config, host_maddrs=with_ports(config.host_maddrs, host.visible))
            await host.close()
            host = await _begun(again, identity, found.reach)
        await host.settle(found)
    except BaseException:
        await host.close()
        raise
    return host


async def _begun(config: NetworkConfig, identity: Identity, reach: Reach) -> HivemindHost:
    host = HivemindHost(config, identity, await Daemon.start(config, identity, reach))
    try:
        await host.begin()
    except BaseException:
        await host.close()
        raise
    return host


async def _some(dials: dict[asyncio.Task[None], list[str]]) -> list[asyncio.Task[None]]:
    """Those that succeeded, soon after the first one did."""
    pending = set(dials)
    reached: list[asyncio.Task[None]] = []
    while pending:
        done, pending = await asyncio.wait(
            pending, timeout=_OTHERS if reached else None, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            break
        reached += [dial for dial in done if dial.exception() is None]
    return reached


def _reason(dial: asyncio.Task[None]) -> str:
    if not dial.done():
        return f"no answer within {_OTHERS} s of another's"
    error = dial.exception()
    return str(error).partition(": ")[2] or str(error)


def _raw_peer_id(peer_id: PeerId) -> bytes:
    try:
        return base58.b58decode(peer_id)
    except ValueError as error:
        raise InvalidInput(f"{peer_id!r} is not a peer id") from error


def _peer_in(address: str) -> PeerId:
    head, _, peer_id = address.rpartition("/p2p/")
    if not head or len(_raw_peer_id(peer_id)) < _SHORTEST_PEER_ID:
        raise InvalidInput(f"the address {address} of an initial peer does not end in /p2p/ and its peer id")
    return peer_id


def _dialable(peer_id: PeerId, addresses: Sequence[str]) -> list[bytes]:
    """Addresses as p2pd takes them; those that are broken, or another peer's, are left out."""
    raw = []
    for address in addresses:
        bare = address.removesuffix(f"/p2p/{peer_id}")
        try:
            raw.append(Multiaddr(bare).to_bytes())
        except Exception as error:  # multiaddr raises many kinds
            log.debug("%s is not an address: %s", address, error)
    return raw
