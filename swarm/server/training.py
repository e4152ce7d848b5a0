"""Computes whole sequences, and their gradients, for clients that train what they have themselves.

A pass is asked for by a message and answered before the next is read. What goes in comes from the client or from
another hop, what comes out goes to the client or to the next. What is kept of it are the inputs, so that they need not
come again with the gradients of the outputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from swarm.config import ServerConfig
from swarm.contract import Contract
from swarm.errors import ContextTooLong, ContractMismatch, MalformedFrame, StreamClosed, SwarmError, Unauthorized
from swarm.jobs import Afresh, Backward
from swarm.net.base import Host, Stream
from swarm.net.quota import Places
from swarm.server.activations import KeptActivations
from swarm.server.engine import Engine
from swarm.server.few_at_a_time import FewAtATime
from swarm.server.handing import Handing
from swarm.server.hosted import Hosted
from swarm.server.kept import Kept
from swarm.server.requests import Requests
from swarm.server.work import Gradients, Passed, Work
from swarm.tasks import ended
from swarm.types import Adapter, PeerId, Span
from swarm.wire import messages, training
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import Buffer

log = logging.getLogger(__name__)

Pass = Afresh[memoryview] | Backward[memoryview]


@dataclass(frozen=True, slots=True)
class _Client:
    """Who asks on a stream for passes through `span`; `session`: the name of what it has in the engine's queue."""

    stream: Stream
    requests: Requests
    hosted: Hosted
    span: Span
    session: bytes

    @property
    def peer(self) -> PeerId:
        return self.stream.peer_id

    async def read(self, size: int) -> memoryview:
        """What was announced."""

        async def piece() -> bytes:
            request = await self.requests.next()
            if request.WhichOneof("kind") != "data":
                raise MalformedFrame("the data of a pass is expected")
            return request.data

        return memoryview(await training.collect(size, piece))


@dataclass(slots=True)
class _Signs:
    """What is said of a pass. `waiting`: not all that it needs is here."""

    waiting: bool = True


class Training:
    """Serves `/swarm/training`. `find`: what is hosted that fits a contract, else ContractMismatch or ServerBusy."""

    def __init__(self, host: Host, find: Callable[[Contract], Hosted], config: ServerConfig) -> None:
        share = config.training_share_per_peer
        self.kept = Kept[bytes](config.training_bytes, int(config.training_bytes * share))
        self.adapters = Kept[bytes](config.adapter_bytes, int(config.adapter_bytes * share))
        self.activations = KeptActivations(config.activation_bytes, int(config.activation_bytes * share))
        self._handing = Handing(host, config)
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

    def adapter(self, peer: PeerId, digest: bytes) -> Adapter | None:
        """What is kept of a client's; None: nothing (any more)."""
        data = self.adapters.get(peer, digest, _now())
        return None if data is None else Adapter(digest, data)

    async def _fail(self, stream: Stream, failure: pb.Failure) -> None:
        await self._send(stream, pb.TrainingReply(failure=failure))

    async def _serve(self, stream: Stream) -> None:
        requests = Requests(stream, self._config.stuck)
        try:
            request = await requests.next()
            match request.WhichOneof("kind"):
                case "contract":
                    await self._serve_client(stream, requests, request.contract)
                case "handed":
                    await self._handing.take(stream, training.check_handed(request.handed))
                case _:
                    raise MalformedFrame("training begins with a contract")
        finally:
            await requests.close()

    async def _serve_client(self, stream: Stream, requests: Requests, contract: pb.Contract) -> None:
        asked = messages.contract_of(contract)
        hosted = self._find(asked)
        if not hosted.trains:
            raise ContractMismatch(_why_not(hosted))
        await self._send(stream, pb.TrainingReply(opened=True))
        client = _Client(stream, requests, hosted, asked.span, os.urandom(messages.SESSION_BYTES))
        try:
            request = await requests.next()
            while True:
                match request.WhichOneof("kind"):
                    case "wanted":
                        request = await self._compute(client, training.check_pass(request.wanted))
                    case "adapter":
                        await self._take(client, training.check_adapter(request.adapter))
                        request = await requests.next()
                    case _:
                        raise MalformedFrame("a pass or an adapter is expected")
        finally:
            hosted.engine.cancel(client.session)

    async def _take(self, client: _Client, announced: pb.Adapter) -> None:
        """Keep an adapter, if it is what it says, and fits what is hosted."""
        peer, size, stream = client.peer, announced.size, client.stream
        if not size:
            known = self.adapter(peer, announced.digest) is not None
            answer = pb.TrainingReply(opened=True) if known else pb.TrainingReply(missing=pb.Missing(adapter=True))
            await self._send(stream, answer)
            return
        with self.adapters.under_way(peer, size):
            data = bytes(await client.read(size))
            if hashlib.sha256(data).digest() != announced.digest:
                raise MalformedFrame("an adapter that has another digest than it was announced with")
            await asyncio.to_thread(client.hosted.engine.runner.check_adapter, data)
        self.adapters.put(peer, announced.digest, data, size, _now())
        await self._send(stream, pb.TrainingReply(opened=True))

    async def _compute(self, client: _Client, asked: pb.Pass) -> pb.TrainingRequest:
        """One pass: read what comes along, compute, and answer. Returns what is asked next."""
        limit = client.hosted.limits.max_positions
        if limit and max(asked.counts) > limit:
            raise ContextTooLong(f"{max(asked.counts)} positions, of {limit} at most")
        size = sum(asked.counts) * client.hosted.contract.row_bytes
        handed: SwarmError | None = None
        with self.kept.under_way(client.peer, size * (1 + asked.inputs + asked.gradients)):
            async with self._alive(client) as signs:
                found = await self._found(client, asked, size, signs)
                if not isinstance(found, pb.Missing) and asked.HasField("onward"):
                    handed = await client.requests.until_next(self._hand_on(client.hosted, asked.onward, found.rows))
            if isinstance(found, pb.Missing):
                await self._send(client.stream, pb.TrainingReply(missing=found))
            elif not asked.HasField("onward"):
                await self._answer(client.stream, found.rows, found.adapter)
        if isinstance(found, pb.Missing) or not asked.HasField("onward"):
            return await client.requests.next()
        if handed is not None:
            log.debug("not handed on for %s: %s", client.peer, handed)
        with self.kept.under_way(client.peer, len(found.rows)):
            await self._answer(client.stream, b"", found.adapter, handed=handed is None)
            # It may come to nothing there: it is held until the client asks for something else, or leaves.
            while (request := await client.requests.next()).WhichOneof("kind") == "recall":
                await self._answer(client.stream, found.rows, b"")
            return request

    async def _found(
        self, client: _Client, asked: pb.Pass, size: int, signs: _Signs
    ) -> Passed | Gradients | pb.Missing:
        """What comes of a pass, or what is missing for it."""
        peer, given = client.peer, asked.inputs + asked.gradients - bool(asked.upstream)
        data = await client.read(size * given)
        adapter = self.adapter(peer, asked.adapter) if asked.adapter else None
        kept = None if asked.inputs else self.kept.get(peer, asked.id, _now())
        lacks_inputs = not asked.inputs and (kept is None or len(kept) != size)
        if lacks_inputs or (asked.adapter and adapter is None):
            return pb.Missing(inputs=lacks_inputs, adapter=bool(asked.adapter) and adapter is None)
        if asked.upstream:
            with self._handing.awaiting(asked.id, asked.upstream, size) as coming:
                rows = await client.requests.meanwhile(coming, self._config.training_expiry)
                data = memoryview(bytes(data) + rows) if given else rows
        signs.waiting = False
        inputs = memoryview(kept) if kept is not None else data[:size]
        job = _job(client.span, asked, inputs, data[-size:], adapter)
        found = await self._run(client.hosted, client.session, job, peer, b"" if asked.again else asked.id)
        if asked.gradients:
            self.kept.drop(peer, asked.id)
        elif not asked.again:
            self.kept.put(peer, asked.id, bytes(inputs), size, _now())
        return found

    async def _hand_on(self, hosted: Hosted, onward: pb.Onward, rows: Buffer) -> None:
        """To the next hop, at the addresses of its own signed record and nowhere else."""
        record = hosted.limits.verify(onward.record)
        if record.model != hosted.contract.model:
            raise Unauthorized(f"{record.peer_id} serves another model")
        await self._handing.give(record, onward.id, rows)

    async def _answer(self, stream: Stream, rows: Buffer, of_adapter: bytes, *, handed: bool = False) -> None:
        computed = pb.Computed(rows=len(rows), adapter=len(of_adapter), handed=handed)
        await self._send(stream, pb.TrainingReply(computed=computed))
        for piece in training.pieces(memoryview(rows), of_adapter):
            await self._send(stream, pb.TrainingReply(data=piece))

    async def _run(self, hosted: Hosted, session: bytes, job: Pass, client: str, name: bytes) -> Passed | Gradients:
        """What comes of a pass, in its turn, with what is kept of it and as much room as there is; nothing of one
        without a name."""
        model, given = hosted.contract.model, len(job.inputs) * len(job.span)
        kept = self.activations.take(client, name) if name else None
        with contextlib.ExitStack() as stack:
            if kept is None and name:
                room = stack.enter_context(self.activations.room(client, model, given, _now()))
                job = replace(job, room=room)
            elif isinstance(job, Backward):
                job = replace(job, activations=kept)
            found = await self._computed(hosted.engine, session, job, client)
        if isinstance(found, Passed) and found.activations is not None:
            self.activations.put(client, name, found.activations, model, given, _now())
        if isinstance(found, Gradients | Passed):
            return found
        return Gradients(found, b"") if isinstance(job, Backward) else Passed(found, None)

    @staticmethod
    async def _computed(engine: Engine, session: bytes, job: Pass, client: str) -> Buffer | Gradients | Passed:
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
    async def _alive(self, client: _Client) -> AsyncIterator[_Signs]:
        """Give signs of life meanwhile."""
        signs, engine = _Signs(), client.hosted.engine

        async def beat() -> None:
            with contextlib.suppress(StreamClosed, TimeoutError):
                while True:
                    await asyncio.sleep(training.BEAT)
                    working = pb.Working(beat=engine.beat, waiting=signs.waiting)
                    await self._send(client.stream, pb.TrainingReply(working=working))

        beating = asyncio.ensure_future(beat())
        try:
            yield signs
        finally:
            await ended(beating)

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
