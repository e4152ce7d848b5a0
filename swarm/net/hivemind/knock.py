"""Has a peer that is reached through a forwarder punch a hole again.

go-libp2p punches when a connection through a forwarder has come, and p2pd makes no second one to a peer that is
connected. So one is made here, secured as p2pd would, given up as soon as it counts, and never used.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable

import base58
from google.protobuf.message import DecodeError

from swarm.errors import MalformedFrame, PeerUnreachable, ProtocolError, StreamClosed
from swarm.net.edge.negotiation import select
from swarm.net.forwarding import forwarding_pb2 as pb
from swarm.net.forwarding.circuits import FRAME_LIMIT, HOP_PROTOCOL
from swarm.net.identity import Identity
from swarm.net.noise import NOISE, secured
from swarm.types import PeerId
from swarm.wire.framing import read_frame, write_frame

PATIENCE = 10.0
"""Seconds for all that both say until the connection is made ..."""
COUNTED = 0.5
"""... and then until the other side's p2pd has taken notice."""
YAMUX = "/yamux/1.0.0"
_DISCARDED = 4096

OpenRaw = Callable[[bytes, str], Awaitable[tuple[StreamReader, StreamWriter]]]
"""A stream to a peer that is connected, under a protocol. Raises NetworkError."""


class _Carried:
    """A stream to a forwarder as what it carries."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, n: int) -> bytes:
        return await self._reader.read(n)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


async def knock(open_raw: OpenRaw, identity: Identity, forwarder: PeerId, peer_id: PeerId) -> None:
    """Come to a peer through a forwarder that is connected, and leave.

    Raises PeerUnreachable where the forwarder does not open a circuit, or nothing came of it, and NetworkError.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await open_raw(base58.b58decode(forwarder), HOP_PROTOCOL)
            try:
                await _come(reader, writer, identity, peer_id)
            finally:
                writer.transport.abort()
    except (TimeoutError, OSError, EOFError, ProtocolError, StreamClosed) as error:
        raise PeerUnreachable(f"nobody at {peer_id} through {forwarder}: {error!r}") from error


async def _come(reader: StreamReader, writer: StreamWriter, identity: Identity, peer_id: PeerId) -> None:
    asking = pb.HopMessage(type=pb.HopMessage.CONNECT, peer=pb.CircuitPeer(id=base58.b58decode(peer_id)))
    write_frame(writer, asking.SerializeToString())
    try:
        answer = pb.HopMessage.FromString(await read_frame(reader, FRAME_LIMIT))
    except DecodeError as error:
        raise MalformedFrame("the forwarder's answer is no message of a circuit") from error
    if answer.status != pb.OK:
        raise PeerUnreachable(f"the forwarder says {pb.Status.Name(answer.status)}")
    carried = _Carried(reader, writer)
    if not await select(carried, NOISE):
        raise MalformedFrame("it does not speak Noise")
    if not await select(await secured(carried, identity, peer_id), YAMUX):
        raise MalformedFrame("it does not speak yamux")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(COUNTED):
            while await reader.read(_DISCARDED):
                pass
