"""Computes whole sequences, and their gradients, for clients that train what they have themselves.

A pass is asked for by a message and answered before the next is read. What is kept of it are the inputs, so that they
need not come again with the gradients of the outputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from swarm.config import TRAINING_FRAME_LIMIT, ServerConfig
from swarm.contract import Contract
from swarm.errors import ContextTooLong, ContractMismatch, MalformedFrame, StreamClosed, SwarmError
from swarm.jobs import Afresh, Backward
from swarm.net.base import Stream
from swarm.net.quota import Places
from swarm.server.activations import KeptActivations
from swarm.server.engine import Engine
from swarm.server.few_at_a_time import FewAtATime
from swarm.server.hosted import Hosted
from swarm.server.kept import Kept
from swarm.server.work import Gradients, Passed, Work
from swarm.tasks import ended
from swarm.types import Adapter, PeerId, Span
from swarm.wire import messages, training
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import Buffer

log = logging.getLogger(__name__)

Pass = Afresh[memoryview] | Backward[memoryview]


class Training:
    """Serves `/swarm/training`. `find`: what is hosted that fits a contract, else ContractMismatch or ServerBusy."""

    def __init__(self, find: Callable[[Contract], Hosted], config: ServerConfig) -> None:
        share = config.training_share_per_peer
        self.kept = Kept[bytes](config.training_bytes, int(config.training_bytes * share))
        self.adapters = Kept[bytes](config.adapter_bytes, int(config.adapter_bytes * share))
        self.activations = KeptActivations(config.activation_bytes, int(config.activation_bytes * share))
        self._find = find
        self._config = config
        streams = Places(config.training_streams_per_peer, config.training_streams)
        self._streams = FewAtATime(streams, "too many passes at a time", self._serve, self._fail)

    async def keep_house(self) -> None:
        """Forget what nobody has asked for in a long time."""
        while True:
            await asyncio.sleep(self._config.training_expiry / 4)
            for kept in (self.kept, self.adapters, self.activations):
                kept.expire(_now() - self._config.training_expiry)

    async def serve(self, stream: Stream) -> None:
        """Compute for a peer until it leaves."""
        await self._streams.serve(stream)

    async def _fail(self, stream: Stream, failure: pb.Failure) -> None:
        await self._send(stream, pb.TrainingReply(failure=failure))

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
                match request.WhichOneof("kind"):
                    case "wanted":
                        wanted = training.check_pass(request.wanted)
                        await self._compute(stream, hosted, asked.span, session, wanted)
                    case "adapter":
                        await self._take(stream, hosted, training.check_adapter(request.adapter))
                    case _:
                        raise MalformedFrame("a pass or an adapter is expected")
        finally:
            hosted.engine.cancel(session)

    async def _take(self, stream: Stream, hosted: Hosted, announced: pb.Adapter) -> None:
        """Keep an adapter, if it is what it says, and fits what is hosted."""
        peer, size = stream.peer_id, announced.size
        if not size:
            known = self.adapter(peer, announced.digest) is not None
            answer = pb.TrainingReply(opened=True) if known else pb.TrainingReply(missing=pb.Missing(adapter=True))
            await self._send(stream, answer)
            return
        with self.adapters.under_way(peer, size):
            data = bytes(await self._read(stream, size))
            if hashlib.sha256(data).digest() != announced.digest:
                raise MalformedFrame("an adapter that has another digest than it was announced with")
            await asyncio.to_thread(hosted.engine.runner.check_adapter, data)
        self.adapters.put(peer, announced.digest, data, size, _now())
        await self._send(stream, pb.TrainingReply(opened=True))

    def adapter(self, peer: PeerId, digest: bytes) -> Adapter | None:
        """What is kept of a client's; None: nothing (any more)."""
        data = self.adapters.get(peer, digest, _now())
        return None if data is None else Adapter(digest, data)

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
                adapter = self.adapter(peer, asked.adapter) if asked.adapter else None
                lacks = pb.Missing(
                    inputs=inputs is None or len(inputs) != size, adapter=bool(asked.adapter) and adapter is None
                )
                found: Passed | Gradients | None = None
                if inputs is not None and not lacks.inputs and not lacks.adapter:
                    job = _job(span, asked, memoryview(inputs), data[-size:], adapter)
                    found = await self._run(hosted, session, job, peer, asked.id)
            if inputs is None or found is None:
                await self._send(stream, pb.TrainingReply(missing=lacks))
                return
            if asked.gradients:
                self.kept.drop(peer, asked.id)
            else:
                self.kept.put(peer, asked.id, bytes(inputs), size, _now())
            of_adapter = found.adapter if isinstance(found, Gradients) else b""
            computed = pb.Computed(rows=len(found.rows), adapter=len(of_adapter))
            await self._send(stream, pb.TrainingReply(computed=computed))
            for piece in training.pieces(memoryview(found.rows), of_adapter):
                await self._send(stream, pb.TrainingReply(data=piece))

    async def _read(self, stream: Stream, size: int) -> memoryview:
        async def piece() -> bytes:
            request = await self._receive(stream)
            if request.WhichOneof("kind") != "data":
                raise MalformedFrame("the data of a pass is expected")
            return request.data

        return memoryview(await training.collect(size, piece))

    async def _run(self, hosted: Hosted, session: bytes, job: Pass, client: str, name: bytes) -> Passed | Gradients:
        """What comes of a pass, in its turn, with what is kept of it and as much room as there is."""
        model, given = hosted.contract.model, len(job.inputs) * len(job.span)
        kept = self.activations.take(client, name)
        with contextlib.ExitStack() as stack:
            if kept is None:
                room = stack.enter_context(self.activations.room(client, model, given, _now()))
                job = replace(job, room=room)
            elif isinstance(job, Backward):
                job = replace(job, activations=kept)
            found = await self._answer(hosted.engine, session, job, client)
        if isinstance(found, Passed) and found.activations is not None:
            self.activations.put(client, name, found.activations, model, given, _now())
        if isinstance(found, Gradients | Passed):
            return found
        return Gradients(found, b"") if isinstance(job, Backward) else Passed(found, None)

    @staticmethod
    async def _answer(engine: Engine, session: bytes, job: Pass, client: str) -> Buffer | Gradients | Passed:
        """What comes of a job, in its turn. Raises ComputeFailed."""
        answer = asyncio.get_running_loop().create_future()

        def done(result: Buffer | Gradients | Passed) -> None:
            if not answer.done():
                answer.set_result(result)

        def failed(error: SwarmError) -> None:
            if not answer.done():
                answer.set_exception(error)

        engine.submit(Work(session, job, done, failed, client=client))
        result: Buffer | Gradients | Passed = await answer
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


def _job(span: Span, asked: pb.Pass, inputs: memoryview, gradients: memoryview, adapter: Adapter | None) -> Pass:
    counts = tuple(asked.counts)
    if asked.gradients:
        return Backward(span, counts, inputs, gradients, adapter, not asked.unwanted, asked.seed)
    return Afresh(span, counts, inputs, adapter, asked.seed, inputs_wanted=not asked.fixed)


def _why_not(hosted: Hosted) -> str:
    if hosted.contract.dtype == "float16":
        return "computes in float16, in which gradients overflow: train on servers in float32 or bfloat16"
    return "takes no training"


def _now() -> float:
    return asyncio.get_running_loop().time()
