"""A whole model's servers in one answer: any peer passes on what it knows, as records are signed by their owners."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.errors import RecordRefused, SwarmError
from swarm.net.base import Directory, Host, Stream
from swarm.net.records import MAX_BLOCKS
from swarm.tasks import Tasks, ended
from swarm.types import PeerId, ServerRecord
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

FRESH = 5.0
"""Seconds for which what was read is passed on without a thought; after that it is read again, beside answering."""
STALE = 45.0
"""Seconds after which it is passed on no more."""
MODELS = 16
"""Models that are kept, those that were asked for last."""
READINGS = 4
"""Models that are read at a time; who asks for another then hears nothing of it."""
PATIENCE = 10.0
"""Seconds for a question, and for an answer to be taken."""
FRAME = 256 * 1024
REQUEST = 512
MOST_RECORDS = 16_384


@dataclass(slots=True)
class _Page:
    """What is known of a model, and since when."""

    records: tuple[bytes, ...] = ()
    read_at: float = float("-inf")
    reading: asyncio.Task[None] | None = None


class RecordBook:
    """What this peer has read of models that somebody asked for."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._pages: dict[tuple[str, int], _Page] = {}
        self._tasks = Tasks(log)

    async def serve(self, host: Host) -> None:
        """Answer what comes in over `host`."""
        await host.serve(messages.RECORDS_PROTOCOL, self.answer)

    async def close(self) -> None:
        """Read no more."""
        await self._tasks.close()

    async def answer(self, stream: Stream) -> None:
        """One question, and its answer in as many frames as it takes."""
        try:
            async with asyncio.timeout(PATIENCE):
                request = messages.decode(pb.RecordsRequest, await stream.receive(REQUEST))
                messages.require(0 < len(request.model) <= messages.MAX_TEXT, "this is no model's key")
                messages.require(0 < request.blocks <= MAX_BLOCKS, "no model has so many blocks")
                page = await self._page(request.model, request.blocks)
                if page is not None:
                    await _send(stream, page, asyncio.get_running_loop().time())
        except TimeoutError:
            return

    async def _page(self, model: str, blocks: int) -> _Page | None:
        """The page of a model, read if need be; None: too much is being read already, or it cannot be."""
        now, key = asyncio.get_running_loop().time(), (model, blocks)
        page = self._pages.pop(key, None)
        if page is None:
            if sum(other.reading is not None for other in self._pages.values()) >= READINGS:
                return None
            page = _Page()
        self._pages[key] = page
        idle = [each for each, other in self._pages.items() if other.reading is None and each != key]
        for gone in idle[: max(len(self._pages) - MODELS, 0)]:
            del self._pages[gone]
        if now - page.read_at > FRESH and page.reading is None:
            page.reading = self._tasks.spawn(self._read(page, model, blocks), name=f"records of {model[:12]}")
        if now - page.read_at > STALE and page.reading is not None:
            await asyncio.wait([page.reading])
        return page if asyncio.get_running_loop().time() - page.read_at <= STALE else None

    async def _read(self, page: _Page, model: str, blocks: int) -> None:
        try:
            found = await self._directory.lookup(model, blocks)
            page.records = tuple(record.signed for record in found[:MOST_RECORDS])
            page.read_at = asyncio.get_running_loop().time()
        except SwarmError as error:
            log.info("the records of %s are not read: %s", model[:12], error)
        finally:
            page.reading = None


async def _send(stream: Stream, page: _Page, now: float) -> None:
    reply, size = pb.RecordsReply(age=now - page.read_at), 0
    for record in page.records:
        if size + len(record) > FRAME:
            reply.more = True
            await stream.send(reply.SerializeToString())
            reply, size = pb.RecordsReply(age=now - page.read_at), 0
        reply.records.append(record)
        size += len(record) + 8
    await stream.send(reply.SerializeToString())


class Introducers:
    """Peers that can be asked for all servers of a model. `peers`: who, the first of them that answers will do."""

    def __init__(self, host: Host, directory: Directory, peers: Sequence[PeerId]) -> None:
        self._host = host
        self._directory = directory
        self._peers = peers

    async def servers(self, model: str, blocks: int) -> list[ServerRecord]:
        """What the first of them knows that knows anything; empty where none does. Records that do not verify, or are
        of another model, are left out."""
        asked = [asyncio.ensure_future(self._ask(peer, model, blocks)) for peer in self._peers]
        try:
            for answer in asyncio.as_completed(asked):
                if found := await answer:
                    return found
            return []
        finally:
            await ended(*asked)

    async def _ask(self, peer: PeerId, model: str, blocks: int) -> list[ServerRecord]:
        try:
            async with asyncio.timeout(PATIENCE):
                stream = await self._host.open_stream(peer, messages.RECORDS_PROTOCOL)
                try:
                    signed = await _receive(stream, pb.RecordsRequest(model=model, blocks=blocks))
                finally:
                    stream.close()
        except (SwarmError, TimeoutError) as error:
            log.debug("%s tells no records: %s", peer, error)
            return []
        found = [self._verified(each) for each in signed]
        return [r for r in found if r is not None and r.model == model and r.span.last <= blocks]

    def _verified(self, signed: bytes) -> ServerRecord | None:
        try:
            return self._directory.verify(signed)
        except RecordRefused:
            return None


async def _receive(stream: Stream, request: pb.RecordsRequest) -> list[bytes]:
    await stream.send(request.SerializeToString())
    signed = list[bytes]()
    while True:
        reply = messages.decode(pb.RecordsReply, await stream.receive(2 * FRAME))
        signed += reply.records
        messages.require(len(signed) <= MOST_RECORDS, "no model has so many servers")
        if not reply.more:
            return signed
