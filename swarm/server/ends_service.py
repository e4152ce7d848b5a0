"""Serves the ends of a model to clients that have none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from swarm.config import ENDS_FRAME_LIMIT, ServerConfig
from swarm.errors import ContractMismatch, InvalidInput, MalformedFrame, ServerBusy
from swarm.net.base import Stream
from swarm.net.quota import Places
from swarm.server.ends import HostedEnds
from swarm.server.few_at_a_time import FewAtATime
from swarm.server.hosted import Hosted
from swarm.wire import ends as wire
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

PATIENCE = 60.0
"""Seconds within which a client takes what it asked for."""


class EndsService:
    """Answers `/swarm/ends` out of what is hosted."""

    def __init__(self, hosted: Callable[[], Sequence[Hosted]], config: ServerConfig) -> None:
        self._hosted = hosted
        self._config = config
        streams = Places(config.ends_streams_per_peer, config.ends_streams)
        self._streams = FewAtATime(streams, "too many ask for the ends at a time", self._answer, self._fail)

    async def serve(self, stream: Stream) -> None:
        """Answer a client until it leaves."""
        await self._streams.serve(stream)

    async def _fail(self, stream: Stream, failure: pb.Failure) -> None:
        await self._send(stream, pb.EndsReply(failure=failure))

    async def _answer(self, stream: Stream) -> None:
        async with asyncio.timeout(self._config.open_timeout):
            request = await self._receive(stream)
        if request.WhichOneof("kind") != "open":
            raise MalformedFrame("a stream of the ends begins with open")
        served, dtype = self._found(wire.check_wanted(request.open))
        ends = served.ends
        opened = pb.EndsOpened(fingerprint=ends.fingerprint, vocabulary=ends.vocabulary, hidden_size=ends.hidden_size)
        await self._send(stream, pb.EndsReply(opened=opened))
        while True:
            async with asyncio.timeout(self._config.ends_idle):
                request = await self._receive(stream)
            match request.WhichOneof("kind"):
                case "head":
                    wanted = wire.check_head(request.head, ends.row_bytes, ends.vocabulary, dtype)
                    tokens, values = await served.logits(wanted.hidden, wanted.best)
                    reply = pb.EndsReply(logits=pb.Logits(tokens=tokens, values=values))
                case "embed":
                    ids = wire.check_embed(request.embed, ends.row_bytes)
                    if max(ids) >= ends.embeddings_count:
                        raise InvalidInput(f"token {max(ids)}: there are {ends.embeddings_count}")
                    reply = pb.EndsReply(embedded=await served.embeddings(ids))
                case _:
                    raise MalformedFrame("it is open already")
            await self._send(stream, reply)

    def _found(self, wanted: pb.EndsWanted) -> tuple[HostedEnds, str]:
        """Raises ContractMismatch."""
        for hosted in self._hosted():
            contract, served = hosted.contract, hosted.ends
            if served is None or (contract.model, contract.dtype) != (wanted.model, wanted.dtype):
                continue
            if hosted.draining:
                raise ServerBusy("this server is leaving", retry_after=60.0)
            if served.ends.fingerprint.startswith(wanted.fingerprint):
                return served, contract.dtype
        raise ContractMismatch("this server has not these ends")

    async def _receive(self, stream: Stream) -> pb.EndsRequest:
        return messages.decode(pb.EndsRequest, await stream.receive(ENDS_FRAME_LIMIT))

    async def _send(self, stream: Stream, reply: pb.EndsReply) -> None:
        async with asyncio.timeout(PATIENCE):
            await stream.send(reply.SerializeToString())
