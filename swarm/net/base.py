"""The network as everything above it sees it: a host that opens and serves streams, and a directory of records."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from swarm.errors import SwarmError
from swarm.net.flight import Flight
from swarm.tasks import first_of
from swarm.types import ModelInfo, PeerId, ServerRecord, Span
from swarm.wire import swarm_pb2 as pb


class Stream(Protocol):
    """An ordered, reliable, authenticated pair of message channels between two peers.

    `peer_id` is the authenticated other side, and of every error that comes out of a stream. `send` and `receive` may
    run concurrently with each other, but each by one task at a time.
    """

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def outdated(self) -> asyncio.Event:
        """Set when a shorter way to the peer has come up, as a direct one beside a forwarder's: a stream that is opened
        now takes it."""

    def concerns(self, *, span: Span | None = None, session: bytes | None = None) -> None:
        """Say what this stream is used for: errors that come out of it from now on carry it."""

    def meter(self, flight: Flight) -> None:
        """From now on large frames are read when there is room for them in `flight`, as far as they are not held
        back or bounded anyway."""

    async def send(self, frame: bytes) -> None:
        """Hand one frame to the transport; waits while its buffers are full.

        Raises StreamClosed when the stream is gone.
        """

    async def receive(self, limit: int) -> bytes:
        """The next frame, of at most `limit` bytes.

        Raises StreamClosed at the end, FrameTooLarge (and resets the stream) above the limit, MalformedFrame on a
        broken length. When it is cancelled part of a frame may be lost: then the stream can only be closed.
        """

    def close(self) -> None:
        """Close at once, both directions. Never raises; may be called twice."""


StreamHandler = Callable[[Stream], Awaitable[None]]


class PeerStream(ABC):
    """What all streams share: whose they are, what for, and that their errors say so."""

    __slots__ = ("_flight", "_outdated", "_peer_id", "_session", "_span")

    def __init__(self, peer_id: PeerId) -> None:
        self._peer_id = peer_id
        self._span: Span | None = None
        self._session: bytes | None = None
        self._flight: Flight | None = None
        self._outdated = asyncio.Event()

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def outdated(self) -> asyncio.Event:
        """As in `Stream`."""
        return self._outdated

    def concerns(self, *, span: Span | None = None, session: bytes | None = None) -> None:
        """As in `Stream`."""
        self._span, self._session = span, session

    def meter(self, flight: Flight) -> None:
        """As in `Stream`."""
        self._flight = flight

    async def send(self, frame: bytes) -> None:
        """As in `Stream`."""
        try:
            await self._send(frame)
        except SwarmError as error:
            error.attach(peer=self._peer_id, span=self._span, session=self._session)
            raise

    async def receive(self, limit: int) -> bytes:
        """As in `Stream`."""
        try:
            return await self._receive(limit)
        except SwarmError as error:
            error.attach(peer=self._peer_id, span=self._span, session=self._session)
            raise

    @abstractmethod
    async def _send(self, frame: bytes) -> None: ...

    @abstractmethod
    async def _receive(self, limit: int) -> bytes: ...


async def serve_stream(handler: StreamHandler, stream: Stream, protocol: str, log: logging.Logger) -> Exception | None:
    """Let `handler` have a stream that a peer opened, and close it. Returns what the handler should not have raised."""
    try:
        await handler(stream)
    except SwarmError as error:
        log.debug("a stream under %s ended: %s", protocol, error.attach(peer=stream.peer_id))
    except Exception as error:
        log.exception("a stream of %s under %s was closed by an error", stream.peer_id, protocol)
        return error
    finally:
        stream.close()
    return None


@dataclass(frozen=True, slots=True)
class HostStatistics:
    """`streams`: open here, whoever opened them; `served`: those of others whose handlers run."""

    streams: int
    served: int


class Host(Protocol):
    """A peer on the network."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> Sequence[str]:
        """Multiaddrs (each ending in /p2p/<peer id>) at which others can dial this host."""

    async def open_stream(self, peer_id: PeerId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        """Dial `peer_id` (known, or at `addresses`) and open a stream.

        Raises PeerUnreachable, also for a peer that does not serve `protocol`; DaemonFailed when this host is dead.
        A peer that froze, or stopped serving a protocol that it served before, may be noticed at the first `receive`.
        """

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Call `handler` for each stream that a peer opens under `protocol`; the stream is closed when it returns.

        An exception in a handler closes that stream and is logged; nothing else is disturbed.
        """

    def statistics(self) -> HostStatistics:
        """What goes on here, as of now."""

    async def close(self) -> None:
        """Close every stream, stop serving and leave the network."""


@dataclass(frozen=True, slots=True)
class DirectoryStatistics:
    """`keys`: stored here for the swarm; `peers`: others that take part, as far as this peer knows them."""

    keys: int
    peers: int


class Directory(Protocol):
    """The shared table of who hosts what. Records are signed by their owner; reads drop what does not verify.

    Who announces also notices, and logs as an error, that another machine does so with the same key.
    """

    async def announce(self, record: ServerRecord, model: ModelInfo) -> ServerRecord:
        """Publish (or renew) this peer's record until `record.expires`; returns it as it was signed."""

    async def withdraw(self, record: ServerRecord) -> None:
        """Replace this peer's record by a tombstone that outlives it."""

    async def lookup(self, model: str, blocks: int) -> list[ServerRecord]:
        """All living records of a model with `blocks` blocks, in one read."""

    async def models(self) -> list[ModelInfo]:
        """The models that the swarm knows."""

    async def announce_node(self, node: pb.QueryNode, expires: float) -> None:
        """Publish (or renew) that this peer answers queries, until `expires` (unix seconds)."""

    async def withdraw_node(self, node: pb.QueryNode) -> None:
        """Say that this peer answers no queries any more."""

    async def query_nodes(self, model: str) -> list[pb.QueryNode]:
        """The peers that answer queries for a model, each with its `peer_id`."""

    def verify(self, signed: bytes) -> ServerRecord:
        """The record inside bytes that somebody showed (a record's `signed`). Raises RecordRefused."""

    def statistics(self) -> DirectoryStatistics:
        """What this peer's part of the directory holds, as of now."""

    async def close(self) -> None:
        """Take no more part in the directory. May be called twice."""


async def unless_left(stream: Stream, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` for who opened `stream`, until it is done, or the other side closes the stream or says anything more.

    Raises what the work raises.
    """
    working = asyncio.ensure_future(work)
    if working in await first_of(working, _departure(stream)):
        working.result()


async def _departure(stream: Stream) -> None:
    with contextlib.suppress(SwarmError):
        await stream.receive(1)
