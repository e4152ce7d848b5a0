"""The swarm as light peers see it: what is in the directory, for those who take no part in it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from swarm.config import MAP_FRAME_LIMIT, MapConfig
from swarm.errors import NetworkError, StreamClosed
from swarm.net.base import Directory, Host, Stream, unless_left
from swarm.tasks import ended
from swarm.types import ModelInfo, ServerRecord
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

REQUEST_LIMIT = 64
"""Bytes of a MapRequest, with room for fields to come."""


class MapService:
    """Reads the directory while somebody looks, once for all of them, and tells them what has changed.

    May serve several hosts. `now` is the time in unix seconds.
    """

    def __init__(
        self, directory: Directory, config: MapConfig | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._config = config or MapConfig()
        self._now = now
        self._latest: pb.SwarmMap | None = None
        self._fresh_until = 0.0
        self._lookers = 0
        self._reading: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        """Notified after each reading."""

    @property
    def lookers(self) -> int:
        """Who looks now."""
        return self._lookers

    async def serve(self, host: Host) -> None:
        """Answer what comes in over `host`."""
        await host.serve(messages.MAP_PROTOCOL, self.handle)

    async def handle(self, stream: Stream) -> None:
        """One asker, until it has its map, or, if it watches, until it has gone."""
        try:
            async with asyncio.timeout(self._config.open_timeout):
                request = messages.decode(pb.MapRequest, await stream.receive(REQUEST_LIMIT))
        except TimeoutError:
            return
        if self._lookers >= self._config.max_lookers:
            log.info("%s does not get a map: %d look already", stream.peer_id, self._lookers)
            return
        self._lookers += 1
        try:
            await (unless_left(stream, self._tell(stream)) if request.watch else self._answer(stream, None))
        finally:
            self._lookers -= 1
            if not self._lookers and self._reading is not None:
                reading, self._reading = self._reading, None
                await ended(reading)

    async def _tell(self, stream: Stream) -> None:
        known = None
        while True:
            known = await self._answer(stream, known)

    async def _answer(self, stream: Stream, known: pb.SwarmMap | None) -> pb.SwarmMap:
        """Send the first map that differs from `known`. Raises StreamClosed, also for who takes nothing any more."""
        latest = await self._newer(known)
        try:
            async with asyncio.timeout(self._config.stuck):
                await stream.send(latest.SerializeToString())
        except TimeoutError:
            stream.close()
            raise StreamClosed(f"{stream.peer_id} takes nothing any more") from None
        return latest

    async def _newer(self, known: pb.SwarmMap | None) -> pb.SwarmMap:
        async with self._changed:
            while self._latest is None or self._latest is known or (known is None and self._stale()):
                if self._reading is None or self._reading.done():
                    self._reading = asyncio.create_task(self._read_on(), name="map reading")
                await self._changed.wait()
            return self._latest

    def _stale(self) -> bool:
        return asyncio.get_running_loop().time() >= self._fresh_until

    async def _read_on(self) -> None:
        """Read again and again as long as somebody looks."""
        loop = asyncio.get_running_loop()
        while self._lookers:
            if (left := self._fresh_until - loop.time()) > 0:
                await asyncio.sleep(left)
                continue
            begun = loop.time()
            await self._read()
            # A large swarm takes long to read: then less often.
            took = loop.time() - begun
            self._fresh_until = loop.time() + max(self._config.interval, 10 * took)
            async with self._changed:
                self._changed.notify_all()

    async def _read(self) -> None:
        try:
            latest = await read_map(self._directory, self._now())
        except NetworkError as error:
            log.warning("the map is not renewed: %s", error)
        except Exception:
            log.exception("the map is not renewed")
        else:
            if self._latest is None or not same(latest, self._latest):
                self._latest = latest
            self._latest.time = latest.time


async def read_map(directory: Directory, now: float) -> pb.SwarmMap:
    """What is in the directory, with the time `now`. Raises NetworkError."""
    found = pb.SwarmMap(time=now)
    for info in sorted(await directory.models(), key=lambda info: (info.name, info.key)):
        records = sorted(await directory.lookup(info.key, info.blocks), key=lambda r: (r.span, r.peer_id))
        nodes = sorted(await directory.query_nodes(info.key), key=lambda node: node.peer_id)
        part = pb.SwarmMap(models=[model_of(info)], servers=map(server_of, records), nodes=nodes)
        if found.ByteSize() + part.ByteSize() > MAP_FRAME_LIMIT - 64:
            log.warning("the map is not whole: %s and what comes after it does not fit", info.name)
            break
        found.MergeFrom(part)
    return found


def same(one: pb.SwarmMap, other: pb.SwarmMap) -> bool:
    """Whether two maps differ by nothing but the time."""
    return all(getattr(one, part) == getattr(other, part) for part in ("models", "servers", "nodes"))


def model_of(info: ModelInfo) -> pb.Model:
    return pb.Model(
        key=info.key,
        name=info.name,
        blocks=info.blocks,
        hidden_size=info.hidden_size,
        context_length=info.context_length or 0,
    )


def server_of(record: ServerRecord) -> pb.MapServer:
    return pb.MapServer(
        peer_id=record.peer_id,
        contract=messages.contract_message(replace(record.contract, fingerprints=())),
        state=record.state.value,
        name=record.name,
        decode_ms=record.decode_ms,
        prefill_rate=record.prefill_rate,
        queue=record.queue,
        free_tokens=record.free_tokens,
        version=record.version,
        relayed=record.relayed,
    )
