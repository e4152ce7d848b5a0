"""Rows of training passes from server to server: what a pass waits for, and what one that is computed gives on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from swarm.config import TRAINING_FRAME_LIMIT, ServerConfig
from swarm.errors import MalformedFrame, StreamClosed, Unauthorized
from swarm.net.base import Host, Stream
from swarm.types import PeerId, ServerRecord
from swarm.wire import messages, training
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import Buffer


@dataclass(frozen=True, slots=True, eq=False)
class Awaited:
    """`size` bytes that `upstream` is to hand over."""

    upstream: PeerId
    size: int
    rows: asyncio.Future[memoryview]


class Handing:
    """What is handed to this server and by it. Nothing is read that no pass waits for."""

    def __init__(self, host: Host, config: ServerConfig) -> None:
        self._host = host
        self._config = config
        self._awaited: dict[bytes, Awaited] = {}
        self._more = asyncio.Event()

    @contextmanager
    def awaiting(self, id: bytes, upstream: PeerId, size: int) -> Iterator[asyncio.Future[memoryview]]:
        """The rows of the pass `id`, once they are here; taken as long as the block runs. Raises Unauthorized for an id
        that is waited for already."""
        if id in self._awaited:
            raise Unauthorized("a pass of this id waits already")
        self._awaited[id] = awaited = Awaited(upstream, size, asyncio.get_running_loop().create_future())
        self._more.set()
        self._more = asyncio.Event()
        try:
            yield awaited.rows
        finally:
            del self._awaited[id]
            awaited.rows.cancel()

    async def take(self, stream: Stream, handed: pb.Handed) -> None:
        """Read what another hop hands over. Raises MalformedFrame, Unauthorized, StreamClosed."""
        awaited = await self._find(handed.id)
        if awaited.upstream != stream.peer_id:
            raise Unauthorized("another peer is to hand these rows over")
        if handed.size != awaited.size:
            raise MalformedFrame(f"{handed.size} bytes of {awaited.size} are handed over")

        async def piece() -> bytes:
            async with asyncio.timeout(self._config.stuck):
                request = messages.decode(pb.TrainingRequest, await stream.receive(TRAINING_FRAME_LIMIT))
            if request.WhichOneof("kind") != "data":
                raise MalformedFrame("the data of a pass is expected")
            return request.data

        data = memoryview(await training.collect(awaited.size, piece))
        if awaited.rows.done():
            raise Unauthorized("nobody waits for these rows any more")
        awaited.rows.set_result(data)
        await stream.send(pb.TrainingReply(opened=True).SerializeToString())

    async def _find(self, id: bytes) -> Awaited:
        """The client asks all hops at once: who is first may be here before the client is."""
        try:
            async with asyncio.timeout(self._config.open_timeout):
                while id not in self._awaited:
                    await self._more.wait()
        except TimeoutError:
            raise Unauthorized("no pass waits for these rows") from None
        return self._awaited[id]

    async def give(self, record: ServerRecord, id: bytes, rows: Buffer) -> None:
        """Hand rows on. Raises NetworkError, and what the other side says."""
        stream = await self._host.open_stream(record.peer_id, training.TRAINING_PROTOCOL, record.addresses)
        try:
            await self._send(stream, pb.TrainingRequest(handed=pb.Handed(id=id, size=len(rows))))
            for piece in training.pieces(memoryview(rows)):
                await self._send(stream, pb.TrainingRequest(data=piece))
            async with asyncio.timeout(self._config.stuck):
                reply = messages.decode(pb.TrainingReply, await stream.receive(TRAINING_FRAME_LIMIT))
        except TimeoutError:
            raise StreamClosed(f"{record.peer_id} takes nothing") from None
        finally:
            stream.close()
        if reply.WhichOneof("kind") == "failure":
            raise messages.error_of(reply.failure, record.peer_id)
        if reply.WhichOneof("kind") != "opened":
            raise MalformedFrame(f"{record.peer_id}: no answer to what was handed to it")

    async def _send(self, stream: Stream, request: pb.TrainingRequest) -> None:
        async with asyncio.timeout(self._config.stuck):
            await stream.send(request.SerializeToString())
