"""Carries between peers that cannot dial each other: circuit relay v2, spoken in place of go-libp2p's own relay.

That one cuts a circuit after 128 KiB or two minutes. What is carried is sealed between the two peers (Noise or TLS end
to end) and cannot be read here. No reservation is demanded: who is connected can be reached, so that a forwarder that
restarts has forgotten nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Container, Sequence
from typing import Protocol

import base58

from swarm.config import ForwardConfig
from swarm.errors import MalformedFrame, SwarmError
from swarm.net.forwarding import circuits
from swarm.net.forwarding.circuits import FRAME_LIMIT, STOP_PROTOCOL, Connect, Reserve, Status
from swarm.net.forwarding.quota import Pair, refusal
from swarm.net.forwarding.splice import Ends, Splice
from swarm.net.quota import Bucket, Places
from swarm.types import PeerId
from swarm.wire.framing import read_frame, write_frame

log = logging.getLogger(__name__)

RESERVATION = 3600.0
"""Seconds that a reservation is said to last; nothing depends on it here."""
LAST_WORDS = 10.0
"""Seconds for the other side to close after our last message. Over QUIC our own end would overtake it."""
ASKING = 16
"""Requests of one peer that may be under way at a time; one more is dropped."""
ASKING_ALL = 1024


class Door(Protocol):
    """What a forwarder needs of the peer that it is part of."""

    async def is_connected(self, peer: bytes) -> bool:
        """Whether there is a connection to a peer that is itself no circuit."""

    async def open(self, peer: bytes, protocol: str) -> Ends:
        """A stream to a peer. Raises NetworkError."""


class Forwarder:
    """`addresses`: where we are dialled now, multiaddrs in bytes. `blocked`: whom it carries neither for nor to, by
    default those of `limits`. `leaving`: whether new circuits are refused."""

    def __init__(
        self,
        door: Door,
        limits: ForwardConfig,
        addresses: Callable[[], Sequence[bytes]],
        blocked: Container[PeerId] | None = None,
    ) -> None:
        self.limits = limits
        self.leaving = False
        self.carried = 0
        """Bytes of circuits that have ended."""
        self._door = door
        self._addresses = addresses
        self._blocked: Container[PeerId] = frozenset(limits.blocked) if blocked is None else blocked
        self._pace = Bucket(limits.rate)
        self._open: dict[object, Pair] = {}
        self._asking = Places(ASKING, ASKING_ALL)

    @property
    def circuits(self) -> int:
        """That are open now, or about to be."""
        return len(self._open)

    @property
    def most(self) -> int:
        """Circuits that are opened at a time; 0 while leaving."""
        return 0 if self.leaving else self.limits.circuits

    async def serve(self, caller: PeerId, reader: StreamReader, writer: StreamWriter) -> None:
        """Do what a peer asks in a stream of `HOP_PROTOCOL`. Never raises but cancellation; the stream is closed."""
        if not self._asking.allows(caller):
            writer.transport.abort()
            return
        self._asking.take(caller)
        place = object()
        try:
            target = None
            try:
                target = await self._asked(place, caller, reader, writer)
            finally:
                self._asking.give(caller)
            if target is not None:
                await self._carry(self._open[place], (reader, writer), target)
        except (SwarmError, OSError, TimeoutError) as error:
            log.debug("what %s asked of this forwarder came to nothing: %s", caller, error)
        finally:
            self._open.pop(place, None)
            writer.transport.abort()

    async def _carry(self, pair: Pair, caller: Ends, target: Ends) -> None:
        splice = Splice(caller, target, self._pace, self.limits.idle)
        began = time.monotonic()
        log.info("forwarding between %s and %s, circuit %d of %d", *pair, len(self._open), self.limits.circuits)
        try:
            await splice.run()
        finally:
            self.carried += splice.carried
            seconds = time.monotonic() - began
            log.info("forwarded %d bytes between %s and %s in %.0f s", splice.carried, *pair, seconds)

    async def _asked(self, place: object, caller: PeerId, reader: StreamReader, writer: StreamWriter) -> Ends | None:
        """Answer the request; the stream of the target where there is a circuit now, which is in `_open` at `place`."""
        async with asyncio.timeout(self.limits.handshake):
            request: Reserve | Connect | Status
            try:
                request = circuits.read_hop(await read_frame(reader, FRAME_LIMIT))
            except circuits.Unexpected:
                request = Status.UNEXPECTED_MESSAGE
            except MalformedFrame:
                request = Status.MALFORMED_MESSAGE
        if isinstance(request, Connect):
            target = await self._connect(place, caller, request.target)
            if not isinstance(target, Status):
                try:
                    write_frame(writer, circuits.status(Status.OK))
                    await writer.drain()
                except BaseException:
                    target[1].transport.abort()
                    raise
                return target
            request = target
        if isinstance(request, Status):
            answer = circuits.status(request)
        elif caller in self._blocked:
            answer = circuits.status(Status.PERMISSION_DENIED)
        elif self.leaving:
            answer = circuits.status(Status.RESOURCE_LIMIT_EXCEEDED)
        else:
            answer = circuits.reserved(time.time() + RESERVATION, self._addresses())
        await _say_last(reader, writer, answer)
        return None

    async def _connect(self, place: object, caller: PeerId, target: bytes) -> Ends | Status:
        """A stream to the target on which it has accepted the circuit, or why there is none."""
        pair = caller, base58.b58encode(target).decode()
        refused = Status.RESOURCE_LIMIT_EXCEEDED if self.leaving else None
        refused = refused or refusal(pair, self._open.values(), self.limits, self._blocked)
        if refused is not None:
            log.info("no circuit from %s to %s: %s", *pair, refused.name)
            return refused
        self._open[place] = pair
        ends: Ends | None = None
        try:
            async with asyncio.timeout(self.limits.handshake):
                if await self._door.is_connected(target):
                    ends = await self._door.open(target, STOP_PROTOCOL)
                    write_frame(ends[1], circuits.incoming(base58.b58decode(caller)))
                    await ends[1].drain()
                    if circuits.read_stop(await read_frame(ends[0], FRAME_LIMIT)) == Status.OK:
                        accepted, ends = ends, None
                        return accepted
        except (SwarmError, OSError, TimeoutError) as error:
            log.debug("no circuit from %s to %s: %s", *pair, error)
        finally:
            if ends is not None:
                ends[1].transport.abort()
        del self._open[place]
        return Status.CONNECTION_FAILED


async def _say_last(reader: StreamReader, writer: StreamWriter, frame: bytes) -> None:
    write_frame(writer, frame)
    await writer.drain()
    async with asyncio.timeout(LAST_WORDS):
        await reader.read(1)
