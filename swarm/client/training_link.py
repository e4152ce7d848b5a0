"""The client's end of one hop of a training pass: a stream on which passes are asked for one after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from swarm.client.matrices import Blob
from swarm.config import TRAINING_FRAME_LIMIT, ClientConfig
from swarm.contract import Contract
from swarm.errors import MalformedFrame, PeerUnreachable, StreamClosed, SwarmError
from swarm.net.base import Host, Stream
from swarm.tasks import ended
from swarm.types import Hop, PeerId
from swarm.wire import messages, training
from swarm.wire import swarm_pb2 as pb

FAST = 20
"""Passes are large: who trains is taken to send so many times faster than on the slowest line."""
MOST_ADAPTER = 1 << 30
"""Bytes of an adapter's gradients, at most."""


class Lacking(Exception):
    """The server has not, or no longer, what went into this pass, or its adapter."""

    def __init__(self, missing: pb.Missing) -> None:
        super().__init__(missing)
        self.inputs, self.adapter = missing.inputs, missing.adapter


class NothingCame(Exception):
    """What another hop was to hand over is not there."""


@dataclass(frozen=True, slots=True)
class Way:
    """Who hands a pass its rows, and to whom it hands what it makes of them; neither: the client. `before`: over when
    the rows have been handed over."""

    upstream: PeerId = ""
    onward: pb.Onward | None = None
    before: asyncio.Future[Any] | None = None


DIRECT = Way()


@dataclass(frozen=True, slots=True)
class Answer:
    """`rows`, unless they were to be handed on: then whether they were; `adapter`: the file of its gradients."""

    rows: bytes = field(repr=False)
    adapter: bytes = field(repr=False)
    handed: bool


class TrainingLink:
    """An open stream to `hop`, as a context. Raises PeerUnreachable, StreamClosed, ContractMismatch, ServerBusy."""

    def __init__(self, host: Host, hop: Hop, contract: Contract, config: ClientConfig) -> None:
        self.hop = hop
        self._host = host
        self._contract = contract
        self._config = config
        self._stream: Stream | None = None
        self._unheard = 0
        """Bytes sent since the last reply came: they may still be on their way."""
        self._sending: asyncio.Future[None] | None = None
        self._recalled = False

    def __str__(self) -> str:
        return f"{self.hop.span} at {self.hop.peer_id}"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def open(self) -> None:
        """Connect."""
        record, span = self.hop.server, self.hop.span
        try:
            async with asyncio.timeout(self._config.open_timeout):
                self._stream = await self._host.open_stream(
                    record.peer_id, training.TRAINING_PROTOCOL, record.addresses
                )
                self._stream.concerns(span=span)
                prints = record.contract.on(span).fingerprints
                asked = replace(self._contract.on(span), fingerprints=prints)
                await self._say(pb.TrainingRequest(contract=messages.contract_message(asked)))
            if (await self._hear()).WhichOneof("kind") != "opened":
                raise MalformedFrame(f"{self}: no answer to a contract")
        except TimeoutError:
            self.close()
            text = f"{self}: no connection within {self._config.open_timeout:.0f} s"
            raise PeerUnreachable(text).attach(peer=record.peer_id, span=span) from None
        except BaseException:
            self.close()
            raise

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._stream is not None:
            self._stream.close()

    async def adapt(self, adapter: Blob) -> None:
        """See to it that the server has an adapter. Raises InvalidInput where it does not fit, LimitExceeded, and
        ServerBusy."""
        await self._say(pb.TrainingRequest(adapter=pb.Adapter(digest=adapter.digest)))
        if (await self._hear()).WhichOneof("kind") == "opened":
            return
        announced = pb.TrainingRequest(adapter=pb.Adapter(digest=adapter.digest, size=len(adapter.data)))
        sending = asyncio.ensure_future(self._send(announced, (adapter.data,)))
        try:
            if (await self._hear()).WhichOneof("kind") != "opened":
                raise MalformedFrame(f"{self}: no answer to an adapter")
        finally:
            await ended(sending)

    async def forward(
        self,
        id: bytes,
        counts: Sequence[int],
        inputs: bytes | None,
        adapter: Blob | None,
        inputs_wanted: bool,
        seed: int,
        way: Way = DIRECT,
    ) -> Answer:
        """What the blocks make of whole sequences. `inputs`: None where another hop hands them over; `inputs_wanted`:
        whether gradients of the inputs may be asked for. Raises what the server answers instead."""
        asked = pb.Pass(id=id, counts=counts, inputs=True, seed=seed, fixed=not inputs_wanted)
        return await self._adapted(adapter, asked, way, self._size(counts), inputs or b"")

    async def again(self, id: bytes, counts: Sequence[int], adapter: Blob | None, seed: int) -> Answer:
        """What `forward` gave, of the inputs that the server has kept. Raises Lacking, and as `forward`."""
        asked = pb.Pass(id=id, counts=counts, again=True, seed=seed)
        return await self._adapted(adapter, asked, DIRECT, self._size(counts))

    async def backward(
        self,
        id: bytes,
        counts: Sequence[int],
        inputs: bytes | None,
        gradients: bytes | None,
        adapter: Blob | None,
        inputs_wanted: bool,
        seed: int,
        way: Way = DIRECT,
    ) -> Answer:
        """The gradients of a pass's inputs, if wanted, and of its adapter, from those of its outputs. `inputs`: where
        the server may not have them; `gradients`: None where another hop hands them over. Raises Lacking where it has
        no inputs, and as `forward`.
        """
        asked = pb.Pass(id=id, counts=counts, inputs=inputs is not None, gradients=True, unwanted=not inputs_wanted)
        asked.seed = seed
        size = self._size(counts) if inputs_wanted else 0
        return await self._adapted(adapter, asked, way, size, inputs or b"", gradients or b"")

    async def stop(self) -> None:
        """What is computed shall not be handed on but be recalled."""
        if not self._recalled:
            self._recalled = True
            if self._sending is not None:
                await asyncio.wait([self._sending])
            with contextlib.suppress(StreamClosed):
                await self._say(pb.TrainingRequest(recall=True))

    async def recall(self, size: int) -> bytes:
        """The rows that were handed on, or were to be. Raises PeerUnreachable, StreamClosed, MalformedFrame."""
        await self.stop()
        return (await self._collect(await self._answer(DIRECT), size)).rows

    def _size(self, counts: Sequence[int]) -> int:
        return sum(counts) * self._contract.row_bytes

    async def _adapted(self, adapter: Blob | None, asked: pb.Pass, way: Way, size: int, *parts: bytes) -> Answer:
        """Ask, and once more if the server lacks the adapter."""
        asked.adapter, asked.upstream = adapter.digest if adapter else b"", way.upstream
        if way.onward is not None:
            asked.onward.CopyFrom(way.onward)
            size = 0
        try:
            return await self._exchange(asked, way, size, *parts)
        except Lacking as lacking:
            if adapter is None or not lacking.adapter:
                raise
        await self.adapt(adapter)
        return await self._exchange(asked, way, size, *parts)

    async def _exchange(self, asked: pb.Pass, way: Way, size: int, *parts: bytes) -> Answer:
        self._sending = sending = asyncio.ensure_future(self._send(pb.TrainingRequest(wanted=asked), parts))
        try:
            reply = await self._answer(way)
            if reply.computed.adapter > MOST_ADAPTER or bool(reply.computed.adapter) > bool(asked.adapter):
                raise MalformedFrame(f"{self}: {reply.computed.adapter} bytes of an adapter's gradients")
            return await self._collect(reply, size)
        finally:
            await ended(sending)

    async def _collect(self, reply: pb.TrainingReply, size: int) -> Answer:
        """The data behind an answer."""
        rows, of_adapter = reply.computed.rows, reply.computed.adapter
        if rows != size:
            raise MalformedFrame(f"{self}: {rows} bytes of {size}")
        data = bytes(await training.collect(rows + of_adapter, self._piece))
        return Answer(data[:rows], data[rows:], reply.computed.handed)

    async def _send(self, request: pb.TrainingRequest, parts: Sequence[bytes]) -> None:
        """What is refused meanwhile is told by the answer."""
        with contextlib.suppress(StreamClosed):
            await self._say(request)
            for piece in training.pieces(*parts):
                await self._say(pb.TrainingRequest(data=piece))

    async def _answer(self, way: Way) -> pb.TrainingReply:
        """The answer, after any number of signs of life."""
        clock, beat, moved = asyncio.get_running_loop().time, -1, 0.0
        while True:
            reply = await self._hear()
            match reply.WhichOneof("kind"):
                case "computed":
                    return reply
                case "missing":
                    raise Lacking(reply.missing)
                case "working":
                    working, before = reply.working, way.before
                    held_up = working.waiting and before is not None and not before.done()
                    if working.beat != beat or held_up:
                        beat, moved = working.beat, clock()
                    elif clock() - moved > self._config.engine_stall:
                        late = f"for {clock() - moved:.0f} s"
                        if working.waiting and before is not None:
                            raise NothingCame(f"{self} waits {late} for what it was said to have been handed")
                        raise PeerUnreachable(f"{self}: its engine has not moved {late}")
                case _:
                    raise MalformedFrame(f"{self}: an answer of another kind")

    async def _piece(self) -> bytes:
        reply = await self._hear()
        if reply.WhichOneof("kind") != "data":
            raise MalformedFrame(f"{self}: data was announced, and something else comes")
        return reply.data

    async def _hear(self) -> pb.TrainingReply:
        """The next reply. Raises the error that it is, PeerUnreachable where none comes."""
        assert self._stream is not None
        patience = self._config.silence + self._unheard / (FAST * self._config.slowest_rate)
        try:
            async with asyncio.timeout(patience):
                frame = await self._stream.receive(TRAINING_FRAME_LIMIT)
        except TimeoutError:
            error: SwarmError = PeerUnreachable(f"{self}: silent for {patience:.0f} s")
            raise error.attach(peer=self.hop.peer_id, span=self.hop.span) from None
        self._unheard = 0
        reply = messages.decode(pb.TrainingReply, frame)
        if reply.WhichOneof("kind") == "failure":
            raise messages.error_of(reply.failure, self.hop.peer_id, where=str(self), span=self.hop.span)
        return reply

    async def _say(self, request: pb.TrainingRequest) -> None:
        assert self._stream is not None
        frame = request.SerializeToString()
        self._unheard += len(frame)
        await self._stream.send(frame)
