"""Computes whole sequences, and their gradients, for clients that train what they have themselves.

A pass is asked for by a message and answered before the next is read. What is kept of it are the inputs, so that they
need not come again with the gradients of the outputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from swarm.config import TRAINING_FRAME_LIMIT, ServerConfig
from swarm.contract import Contract
from swarm.errors import ContextTooLong, ContractMismatch, MalformedFrame, ServerBusy, StreamClosed, SwarmError
from swarm.jobs import Afresh, Backward
from swarm.net.base import Stream
from swarm.net.quota import Places
from swarm.server.engine import Engine
from swarm.server.hosted import Hosted
from swarm.server.kept import Kept
from swarm.server.work import Job, Work
from swarm.tasks import ended
from swarm.types import Span
from swarm.wire import messages, training
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import Buffer

log = logging.getLogger(__name__)


class Training:
    """Serves `/swarm/training`. `find`: what is hosted that fits a contract, else ContractMismatch or ServerBusy."""

    def __init__(self, find: Callable[[Contract], Hosted], config: ServerConfig) -> None:
        self.kept = Kept(config.training_bytes, int(config.training_bytes * config.training_share_per_peer))
        self._find = find
        self._config = config
        self._streams = Places(config.training_streams_per_peer, config.training_streams)

    async def keep_house(self) -> None:
        """Forget what nobody has asked for in a long time."""
        while True:
            await asyncio.sleep(self._config.training_expiry / 4)
            self.kept.expire(_now() - self._config.training_expiry)

    async def serve(self, stream: Stream) -> None:
        """Compute for a peer until it leaves."""
        peer = stream.peer_id
        if not self._streams.allows(peer):
            await self._refuse(stream, ServerBusy("too many passes at a time"))
            return
        self._streams.take(peer)
        try:
            await self._serve(stream)
        except (StreamClosed, TimeoutError):
            return
        except SwarmError as error:
            log.debug("training for %s refused: %s", peer, error)
            await self._refuse(stream, error)
        finally:
            self._streams.give(peer)

    async def _refuse(self, stream: Stream, error: SwarmError) -> None:
        with contextlib.suppress(StreamClosed, TimeoutError):
            await self._send(stream, pb.TrainingReply(failure=messages.failure(error)))

    async def _serve(self, stream: Stream) -> None:
        request = await self._receive(stream)
        if request.WhichOneof("kind") != "contract":
            raise MalformedFrame("training begins with a contract")
        asked = messages.contract_of(request.contract)
        hosted = self._find(asked)
        if not hosted.trains:
            raise ContractMismatch(_why_not(hosted))
        await self._send(stream, pb.TrainingReply(opened=True))
        session = os.urandom(messages.SESSION_BYTES)
        try:
            while True:
                request = await self._receive(stream)
                if request.WhichOneof("kind") != "wanted":
                    raise MalformedFrame("a pass is expected")
                await self._compute(stream, hosted, asked.span, session, training.check_pass(request.wanted))
        finally:
            hosted.engine.cancel(session)

    async def _compute(self, stream: Stream, hosted: Hosted, span: Span, session: bytes, asked: pb.Pass) -> None:
        """One pass: read what comes along, compute, and answer."""
        peer, limit = stream.peer_id, hosted.limits.max_positions
        if limit and max(asked.counts) > limit:
            raise ContextTooLong(f"{max(asked.counts)} positions, of {limit} at most")
        size = sum(asked.counts) * hosted.contract.row_bytes
        with self.kept.under_way(peer, size * (1 + asked.inputs + asked.gradients)):
            async with self._alive(stream, hosted.engine):
                data = await self._read(stream, size * (asked.inputs + asked.gradients))
                inputs = data[:size] if asked.inputs else self.kept.get(peer, asked.id, _now())
                known = inputs is not None and len(inputs) == size
                output: Buffer = b""
                if inputs is not None and known:
                    job = _job(span, asked, memoryview(inputs), data[-size:])
                    output = await self._run(hosted.engine, session, job, peer)
            if not known or inputs is None:
                await self._send(stream, pb.TrainingReply(missing=pb.Missing(inputs=True)))
                return
            if asked.gradients:
                self.kept.drop(peer, asked.id)
            else:
                self.kept.put(peer, asked.id, bytes(inputs), _now())
            await self._send(stream, pb.TrainingReply(computed=pb.Computed(rows=len(output))))
            for piece in training.pieces(memoryview(output)):
                await self._send(stream, pb.TrainingReply(data=piece))

    async def _read(self, stream: Stream, size: int) -> memoryview:
        async def piece() -> bytes:
            request = await self._receive(stream)
            if request.WhichOneof("kind") != "data":
                raise MalformedFrame("the data of a pass is expected")
            return request.data

        return memoryview(await training.collect(size, piece))

    @staticmethod
    async def _run(engine: Engine, session: bytes, job: Job, client: str) -> Buffer:
        """What comes of a job, in its turn. Raises ComputeFailed."""
        answer = asyncio.get_running_loop().create_future()

        def done(result: Buffer) -> None:
            if not answer.done():
                answer.set_result(result)

        def failed(error: SwarmError) -> None:
            if not answer.done():
                answer.set_exception(error)

        engine.submit(Work(session, job, done, failed, client=client))
        result: Buffer = await answer
        return result

    @asynccontextmanager
    async def _alive(self, stream: Stream, engine: Engine) -> AsyncIterator[None]:
        """Give signs of life meanwhile."""

        async def beat() -> None:
            with contextlib.suppress(StreamClosed, TimeoutError):
                while True:
                    await asyncio.sleep(training.BEAT)
                    await self._send(stream, pb.TrainingReply(working=pb.Working(beat=engine.beat)))

        beating = asyncio.ensure_future(beat())
        try:
            yield
        finally:
            await ended(beating)

    async def _receive(self, stream: Stream) -> pb.TrainingRequest:
        async with asyncio.timeout(self._config.stuck):
            return messages.decode(pb.TrainingRequest, await stream.receive(TRAINING_FRAME_LIMIT))

    async def _send(self, stream: Stream, reply: pb.TrainingReply) -> None:
        async with asyncio.timeout(self._config.stuck):
            await stream.send(reply.SerializeToString())


def _job(
    span: Span, asked: pb.Pass, inputs: memoryview, gradients: memoryview
) -> Afresh[memoryview] | Backward[memoryview]:
    counts = tuple(asked.counts)
    return Backward(span, counts, inputs, gradients) if asked.gradients else Afresh(span, counts, inputs)


def _why_not(hosted: Hosted) -> str:
    if hosted.contract.dtype == "float16":
        return "computes in float16, in which gradients overflow: train on servers in float32 or bfloat16"
    return "takes no training"


def _now() -> float:
    return asyncio.get_running_loop().time()
