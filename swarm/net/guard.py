"""Who is let in, and how much of this peer each may take: in front of every handler, whatever the host.

Streams are counted by peer, in flight and opened a second; one too many is refused in its protocol's words, with when
to come again, and whoever does not listen to that is hung up on. Frames of a peer beyond its rate wait unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from swarm.config import PeerLimits
from swarm.errors import ServerBusy, StreamClosed, SwarmError
from swarm.net.base import Host, HostStatistics, Stream, StreamHandler
from swarm.net.flight import Flight
from swarm.net.lists import Lists
from swarm.net.quota import Buckets, Places
from swarm.net.swarm_key import SwarmKey
from swarm.types import PeerId, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.training import TRAINING_PROTOCOL

log = logging.getLogger(__name__)

BUSY = 5.0
"""Seconds after which a peer that has too many streams open may come again."""
NOT_SERVED = 60.0
"""The same of one that is on no list."""
_REFUSING, _REFUSING_ALL = 16, 256
"""Refusals of one peer, and of all, that may be on their way; who is refused more often hears nothing."""
_LAST_WORD = 2.0
"""Seconds that a refusal may take to leave."""

REFUSALS: dict[str, Callable[[SwarmError], bytes]] = {
    messages.CONTROL_PROTOCOL: lambda error: pb.ControlReply(failure=messages.failure(error)).SerializeToString(),
    messages.DATA_PROTOCOL: lambda error: pb.Data(failure=messages.failure(error)).SerializeToString(),
    messages.QUERY_PROTOCOL: lambda error: pb.QueryReply(failure=messages.failure(error)).SerializeToString(),
    TRAINING_PROTOCOL: lambda error: pb.TrainingReply(failure=messages.failure(error)).SerializeToString(),
}
"""What a peer is told, in the protocol's own words, when its stream is refused; others are closed."""


class Guard:
    """What peers have here, by the limits that they are held to. Raises InvalidInput for lists that are none."""

    def __init__(self, limits: PeerLimits | None = None) -> None:
        self.limits = limits = limits or PeerLimits()
        self.lists = Lists(limits.allow, limits.block)
        self.flight = Flight(limits.flight_bytes, limits.all_flight_bytes)
        self.streams = Places(limits.streams, limits.all_streams)
        self.refused: Counter[str] = Counter()
        """Streams, by what they were too many of."""
        self.openings = Buckets(limits.openings, limits.openings_at_once)
        self.frames = Buckets(limits.frames)
        self.refusing = Places(_REFUSING, _REFUSING_ALL)

    def refusal(self, peer: PeerId, now: float) -> ServerBusy | None:
        """Why a stream that a peer opens at `now` is not served; None: it is, and counts as opened."""
        if not self.lists.admits(peer, now):
            self.refused["list"] += 1
            return ServerBusy("this peer serves others only", NOT_SERVED)
        if not self.streams.allows(peer):
            self.refused["streams"] += 1
            mine = self.streams.of(peer)
            return ServerBusy(f"you have {mine} of the {self.streams.held} streams that are open here", BUSY)
        if wait := self.openings.of(peer, now).ask(1, now):
            self.refused["openings"] += 1
            return ServerBusy(f"you open more than {self.limits.openings:.0f} streams a second", max(wait, 0.1))
        return None


class GuardedHost:
    """A host whose handlers see only what `guard` lets through, and who has `key`; else as the host.

    Satisfies `Host`.
    """

    def __init__(self, host: Host, guard: Guard, key: SwarmKey | None = None) -> None:
        self._host = host
        self._key = key
        self.guard = guard

    @property
    def peer_id(self) -> PeerId:
        return self._host.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return self._host.addresses

    async def open_stream(self, peer_id: PeerId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        """As in `Host`. Raises WrongSwarmKey for who does not have the key."""
        stream = await self._host.open_stream(peer_id, protocol, addresses)
        if self._key is not None:
            await self._key.prove_to(stream, protocol, self.peer_id)
        return stream

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        await self._host.serve(protocol, functools.partial(self._admit, protocol, handler))

    def statistics(self) -> HostStatistics:
        return self._host.statistics()

    async def close(self) -> None:
        await self._host.close()

    async def _admit(self, protocol: str, handler: StreamHandler, stream: Stream) -> None:
        guard, peer = self.guard, stream.peer_id
        refused = guard.refusal(peer, asyncio.get_running_loop().time())
        if refused is not None:
            await self._refuse(protocol, stream, refused)
            return
        guard.streams.take(peer)
        try:
            stream.meter(guard.flight)
            if self._key is not None and not await self._key.ask_of(stream, protocol, self.peer_id):
                guard.refused["key"] += 1
                log.info("%s opened a stream and does not have this swarm's key", peer)
                return
            await handler(GuardedStream(stream, guard))
        finally:
            guard.streams.give(peer)

    async def _refuse(self, protocol: str, stream: Stream, error: ServerBusy) -> None:
        refusing, words = self.guard.refusing, REFUSALS.get(protocol)
        log.debug("a stream of %s is refused: %s", stream.peer_id, error)
        if words is None or not refusing.allows(stream.peer_id):
            return
        refusing.take(stream.peer_id)
        try:
            with contextlib.suppress(StreamClosed, TimeoutError):
                async with asyncio.timeout(_LAST_WORD):
                    # Words are for those who have the key.
                    if self._key is None or await self._key.ask_of(stream, protocol, self.peer_id):
                        await stream.send(words(error))
        finally:
            refusing.give(stream.peer_id)


class GuardedStream:
    """A stream of which frames are read no faster than its peer may send them; satisfies `Stream`."""

    __slots__ = ("_guard", "_loop", "_stream")

    def __init__(self, stream: Stream, guard: Guard) -> None:
        self._stream = stream
        self._guard = guard
        self._loop = asyncio.get_running_loop()

    @property
    def peer_id(self) -> PeerId:
        return self._stream.peer_id

    @property
    def outdated(self) -> asyncio.Event:
        """As in `Stream`."""
        return self._stream.outdated

    def concerns(self, *, span: Span | None = None, session: bytes | None = None) -> None:
        """As in `Stream`."""
        self._stream.concerns(span=span, session=session)

    def meter(self, flight: Flight) -> None:
        """As in `Stream`."""
        self._stream.meter(flight)

    async def send(self, frame: bytes) -> None:
        """As in `Stream`."""
        await self._stream.send(frame)

    async def receive(self, limit: int) -> bytes:
        """As in `Stream`. Raises StreamClosed, too, when the peer is not to be served any more."""
        frame = await self._stream.receive(limit)
        now = self._loop.time()
        if wait := self._guard.frames.of(self.peer_id, now).take(1, now):
            await asyncio.sleep(wait)
        if not self._guard.lists.admits(self.peer_id, now):
            self.close()
            raise StreamClosed(f"{self.peer_id} is not served any more")
        return frame

    def close(self) -> None:
        """As in `Stream`."""
        self._stream.close()
