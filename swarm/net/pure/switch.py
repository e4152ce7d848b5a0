"""What a host without p2pd does on trio's loop: connections both ways, one to a peer is enough, and streams on them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import base58
import trio

from swarm.config import EdgeConfig
from swarm.errors import DaemonFailed, MalformedFrame, PeerUnreachable
from swarm.net.addresses import best_first
from swarm.net.base import StreamHandler
from swarm.net.edge.listening import Listener
from swarm.net.edge.negotiation import read_exactly, select
from swarm.net.edge.stream import Bridge, EdgeStream
from swarm.net.edge.switch import Makes, Switch
from swarm.net.forwarding import forwarding_pb2 as fwd
from swarm.net.forwarding.circuits import FRAME_LIMIT, HOP_PROTOCOL
from swarm.net.forwarding.ways import parted
from swarm.net.identity import Identity
from swarm.net.pulse import PING, PING_BYTES
from swarm.net.pure.tcp import CarriedBytes, TcpTransport
from swarm.types import PeerId
from swarm.wire.framing import Length, encode_length

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Addresses of a peer that are tried, all at the same time."""
_TOLD = 200


@dataclass(eq=False, slots=True)
class Link:
    """A connection that runs. `carrier`: the forwarder that carries it, if one does."""

    muxed: Any
    nursery: trio.Nursery
    carrier: PeerId | None = None


class PureSwitch(Switch):
    """`opened` makes what a handler, or who opened it, holds of a stream."""

    def __init__(
        self,
        identity: Identity,
        config: EdgeConfig,
        handlers: dict[str, StreamHandler],
        post: Callable[..., None],
        begin: Callable[[EdgeStream, str], None],
        opened: Callable[..., EdgeStream],
    ) -> None:
        self._tcp = TcpTransport(identity, config)
        super().__init__(identity, config, lambda: self._tcp, handlers, post, begin)
        self._opened = opened
        self._links: dict[PeerId, list[Link]] = {}
        self._dialling: dict[PeerId, trio.Lock] = {}
        self._awaited: dict[Any, trio.Event] = {}
        """Set when a connection that was dialled is among `_links`, or has ended."""
        self._own: trio.Nursery | None = None

    async def run(self, ready: Callable[[], None]) -> None:
        async with trio.open_nursery() as nursery:
            self._own = nursery
            await super().run(ready)
            nursery.cancel_scope.cancel()

    def start(self, work: Callable[[], Any]) -> None:
        """Run asynchronous work on trio's loop, from any thread; it raises nothing."""
        self._call(self._start, work)

    def _start(self, work: Callable[[], Any]) -> None:
        if self._own is not None:
            self._own.start_soon(work)

    async def _listen(self, transports: Makes, address: str, nursery: trio.Nursery) -> Listener:
        try:
            return await transports.listen(address, self._arrive, nursery)
        except OSError as error:
            raise DaemonFailed(f"this peer cannot listen at {address}: {error}") from error

    # ---- connections -------------------------------------------------------------------------------------------

    async def _accept_streams(self, connection: Any, peer_id: PeerId, patient: bool, nursery: trio.Nursery) -> None:
        link = Link(connection, nursery, getattr(connection, "carrier", None))
        self._links.setdefault(peer_id, []).append(link)
        if connection in self._awaited:
            self._awaited[connection].set()
        try:
            await super()._accept_streams(connection, peer_id, patient, nursery)
        finally:
            self._drop(peer_id, link)

    def _drop(self, peer_id: PeerId, link: Link) -> None:
        links = self._links.get(peer_id, [])
        if link in links:
            links.remove(link)
        if not links:
            self._links.pop(peer_id, None)

    def connected(self) -> set[PeerId]:
        """Peers with a connection that is no circuit, from any thread."""
        return {peer_id for peer_id, links in list(self._links.items()) if any(link.carrier is None for link in links)}

    def carriers(self) -> set[PeerId]:
        """Forwarders that carry connections of ours, from any thread."""
        return {link.carrier for links in list(self._links.values()) for link in list(links) if link.carrier}

    def _link(self, peer_id: PeerId) -> Link | None:
        """The best there is: one that nobody carries."""
        return min(self._links.get(peer_id, ()), key=lambda link: link.carrier is not None, default=None)

    async def connect(self, peer_id: PeerId, addresses: Sequence[str]) -> Link:
        """The connection to a peer, a new one if there is none. Raises PeerUnreachable."""
        lock = self._dialling.setdefault(peer_id, trio.Lock())
        async with lock:
            try:
                return self._link(peer_id) or await self._dial(peer_id, addresses)
            finally:
                if not lock.statistics().tasks_waiting:
                    self._dialling.pop(peer_id, None)

    async def _dial(self, peer_id: PeerId, addresses: Sequence[str]) -> Link:
        direct, circuits = parted(addresses)
        dialled = [address for address in best_first(direct) if "/tcp/" in address and "/ws" not in address]
        ways: list[Callable[[], Any]] = []
        ways += [functools.partial(self._tcp.dial, address, peer_id) for address in dialled[:AT_ONCE]]
        ways += [
            functools.partial(self._through, forwarder, through, peer_id)
            for forwarder, through in list(circuits.items())[:AT_ONCE]
            if forwarder != peer_id
        ]
        if not ways:
            known = "none of its addresses can be dialled without p2pd" if addresses else "it is not connected"
            raise PeerUnreachable(known)
        muxed = await _first(ways)
        if self._own is None:
            raise PeerUnreachable("this peer has left")
        begun = self._awaited[muxed] = trio.Event()
        self._own.start_soon(self._hold, muxed, begun)
        await begun.wait()
        link = self._link(peer_id)
        if link is None:
            raise PeerUnreachable("the connection ended as soon as it was made")
        return link

    async def _hold(self, muxed: Any, begun: trio.Event) -> None:
        """Serve a connection that was dialled, as those that arrive."""
        try:
            await self._arrive(muxed, True)
        finally:
            del self._awaited[muxed]
            begun.set()

    async def _through(self, forwarder: PeerId, circuits: Sequence[str], peer_id: PeerId) -> Any:
        """A connection to a peer inside a stream to a forwarder. Raises PeerUnreachable."""
        link = await self.connect(forwarder, [circuit.partition("/p2p-circuit")[0] for circuit in circuits])
        stream = await self._select(link, HOP_PROTOCOL)
        try:
            asking = fwd.HopMessage(type=fwd.HopMessage.CONNECT, peer=fwd.CircuitPeer(id=base58.b58decode(peer_id)))
            frame = asking.SerializeToString()
            await stream.write(encode_length(len(frame)) + frame)
            answer = fwd.HopMessage.FromString(await read_message(stream))
            if answer.status != fwd.OK:
                raise PeerUnreachable(f"the forwarder {forwarder} says {fwd.Status.Name(answer.status)}")
            muxed = await self._tcp.secured(CarriedBytes(stream), peer_id)
        except BaseException as error:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0), contextlib.suppress(Exception):
                await stream.reset()
            if isinstance(error, PeerUnreachable) or not isinstance(error, Exception):
                raise
            raise PeerUnreachable(f"the forwarder {forwarder}: {error!r}"[:_TOLD]) from error
        muxed.carrier = forwarder  # type: ignore[attr-defined]
        return muxed

    # ---- streams -----------------------------------------------------------------------------------------------

    async def open(self, peer_id: PeerId, protocol: str, addresses: Sequence[str]) -> EdgeStream:
        """A stream to a peer. Raises PeerUnreachable."""
        for again in (True, False):
            link = await self.connect(peer_id, addresses)
            try:
                stream = await self._select(link, protocol)
                break
            except _Ended as error:
                # Over, and not noticed yet.
                self._drop(peer_id, link)
                link.nursery.cancel_scope.cancel()
                if not again or not addresses:
                    raise PeerUnreachable(f"the connection ended: {error}") from error
        bridge = Bridge(stream, self._config, patient=True)
        opened = self._opened(bridge, peer_id)
        link.nursery.start_soon(self._carry, bridge, opened)
        return opened

    async def _carry(self, bridge: Bridge, opened: EdgeStream) -> None:
        with contextlib.suppress(Exception):  # libp2p raises many kinds
            await bridge.run(opened, self._post)

    async def _hand_over(self, stream: Any, peer_id: PeerId, protocol: str, patient: bool) -> None:
        bridge = Bridge(stream, self._config, patient=patient)
        handed = self._opened(bridge, peer_id)
        self._post(self._begin, handed, protocol)
        await bridge.run(handed, self._post)

    async def _select(self, link: Link, protocol: str) -> Any:
        """A stream under a protocol. Raises PeerUnreachable where the peer does not speak it, _Ended."""
        try:
            stream = await link.muxed.open_stream()
        except Exception as error:  # libp2p raises many kinds
            raise _Ended(repr(error)[:_TOLD]) from error
        try:
            spoken = await select(stream, protocol)
        except BaseException as error:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0), contextlib.suppress(Exception):
                await stream.reset()
            if not isinstance(error, Exception):
                raise
            raise _Ended(repr(error)[:_TOLD]) from error
        if not spoken:
            with contextlib.suppress(Exception):
                await stream.reset()
            raise PeerUnreachable(f"it does not speak {protocol}")
        return stream

    # ---- signs of life -----------------------------------------------------------------------------------------

    async def sign_of_life(self, peer_id: PeerId) -> None:
        """As in `pulse.Line`, over the connection that new streams take."""
        link = self._link(peer_id)
        if link is None:
            raise PeerUnreachable(f"{peer_id} is not connected")
        try:
            stream = await self._select(link, PING)
            try:
                await stream.write(os.urandom(PING_BYTES))
                await read_exactly(stream, PING_BYTES)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0), contextlib.suppress(Exception):
                    await stream.reset()
        except Exception as error:  # libp2p raises many kinds
            raise PeerUnreachable(f"{peer_id} does not answer libp2p's ping: {error!r}"[:_TOLD]) from error

    async def drop(self, peer_id: PeerId) -> None:
        """As in `pulse.Line`."""
        for link in list(self._links.get(peer_id, ())):
            self._drop(peer_id, link)
            link.nursery.cancel_scope.cancel()


class _Ended(Exception):
    """A connection is of no use any more."""


async def read_message(stream: Any) -> bytes:
    """A message with its length before it. Raises MalformedFrame, StreamClosed, and what libp2p raises."""
    length = Length()
    while not length.take((await read_exactly(stream, 1))[0]):
        pass
    if length.value > FRAME_LIMIT:
        raise MalformedFrame(f"a message of {length.value} bytes")
    return await read_exactly(stream, length.value)


async def _first(ways: Sequence[Callable[[], Any]]) -> Any:
    """The first that succeeds, of all at once. Raises PeerUnreachable with what all of them said."""
    found: list[Any] = []
    failed: list[PeerUnreachable] = []

    async def run(way: Callable[[], Any], scope: trio.CancelScope) -> None:
        try:
            result = await way()
        except PeerUnreachable as error:
            failed.append(error)
            return
        if found:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0), contextlib.suppress(Exception):
                await result.secured_conn.close()
            return
        found.append(result)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for way in ways:
            nursery.start_soon(run, way, nursery.cancel_scope)
    if not found:
        raise PeerUnreachable("; ".join(error.message for error in failed)[: 2 * _TOLD])
    return found[0]
