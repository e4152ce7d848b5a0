"""A query node's place in the network: queries in from peers and browsers, and its record in the directory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence

from swarm.config import QUERY_FRAME_LIMIT, GatewayConfig, NetworkConfig
from swarm.contract import Contract
from swarm.errors import InvalidInput, NetworkError, StreamClosed, SwarmError
from swarm.gateway.answers import Answerer
from swarm.gateway.heartbeat import Heartbeat
from swarm.net.base import Directory, Host, Stream, unless_left
from swarm.types import is_called
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)


class QueryService:
    """Lets peers ask some `Answerer`s. One task a stream; what a stream's asker does wrong ends that stream alone."""

    def __init__(self, answerers: Sequence[Answerer], config: GatewayConfig) -> None:
        self.answerers = answerers
        self.config = config

    async def serve(self, host: Host) -> None:
        """Take queries that come in over `host`; it may be called for several."""
        await host.serve(messages.QUERY_PROTOCOL, self.handle)

    async def handle(self, stream: Stream) -> None:
        """One query, until it is answered or its asker has gone."""
        try:
            async with asyncio.timeout(self.config.open_timeout):
                query = messages.decode(pb.Query, await stream.receive(QUERY_FRAME_LIMIT))
        except TimeoutError:
            return
        except SwarmError as error:
            await self._send(stream, pb.QueryReply(failure=messages.failure(error)))
            raise
        await unless_left(stream, self._answer(stream, query))

    async def _answer(self, stream: Stream, query: pb.Query) -> None:
        sent = query.sent_bytes
        try:
            async with Heartbeat(self._answerer(query.model).answer(query), self.config.heartbeat) as replies:
                async for reply in replies:
                    if reply is not None and reply.WhichOneof("kind") == "delta":
                        sent = reply.delta.sent_bytes
                    await self._send(stream, reply or pb.QueryReply(delta=pb.Delta(sent_bytes=sent)))
        except StreamClosed:
            raise
        except SwarmError as error:
            log.info("query %s of %s ends: %s", query.id.hex()[:8], stream.peer_id, error)
            await self._send(stream, pb.QueryReply(failure=messages.failure(error)))

    def _answerer(self, model: str) -> Answerer:
        """Who answers for a model, by its key or name. Raises InvalidInput."""
        if not model and len(self.answerers) == 1:
            return self.answerers[0]
        known = [each for each in self.answerers if model == each.model.key or is_called(each.model.name, model)]
        if not model or not known:
            names = ", ".join(each.model.name for each in self.answerers)
            raise InvalidInput(f"this node answers for {names}, not for {model or 'a model without a name'}")
        return known[0]

    async def _send(self, stream: Stream, reply: pb.QueryReply) -> None:
        """Raises StreamClosed, also for an asker who takes nothing any more."""
        try:
            async with asyncio.timeout(self.config.stuck):
                await stream.send(reply.SerializeToString())
        except TimeoutError:
            stream.close()
            raise StreamClosed(f"{stream.peer_id} takes nothing any more") from None


class Announcer:
    """Keeps a query node's record in the directory. `describe` gives it as of now."""

    def __init__(
        self,
        directory: Directory,
        network: NetworkConfig,
        describe: Callable[[], pb.QueryNode],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._network = network
        self._describe = describe
        self._now = now
        self._random = random.Random()
        self.begun = asyncio.Event()
        """Set when the directory has been told, or has refused, for the first time."""

    async def run(self) -> None:
        """Announce, and again before the record ends, until it is cancelled; then withdraw."""
        try:
            while True:
                await self._announce()
                self.begun.set()
                await asyncio.sleep(self._network.record_renewal * self._random.uniform(0.8, 1.0))
        finally:
            with contextlib.suppress(SwarmError, TimeoutError):
                async with asyncio.timeout(self._network.dial_timeout):
                    await self._directory.withdraw_node(self._describe())

    async def _announce(self) -> None:
        try:
            await self._directory.announce_node(self._describe(), self._now() + self._network.record_lifetime)
        except NetworkError as error:
            log.warning("the directory does not take this query node's record: %s", error)


MOST_ADDRESSES = 8
EDGE_BYTES = 2048
"""Of the addresses for browsers in a record: the directory takes small records only."""


def fitting(addresses: Sequence[str], limit: int = EDGE_BYTES) -> list[str]:
    """As many addresses as fit: the first of each kind, then the second, and so on."""
    kinds: dict[str, int] = {}
    ranked = []
    for place, address in enumerate(addresses):
        kind = next((kind for kind in ("webrtc-direct", "webtransport", "ws") if f"/{kind}" in address), "")
        kinds[kind] = kinds.get(kind, -1) + 1
        ranked.append((kinds[kind], place, address))
    chosen, used = [], 0
    for _, _, address in sorted(ranked):
        used += len(address)
        if used > limit:
            break
        chosen.append(address)
    return chosen


def record_of(
    answerer: Answerer,
    name: str,
    addresses: Sequence[str],
    edges: Sequence[str],
    contract: Contract,
    version: str,
    codec: str = "",
) -> pb.QueryNode:
    """A query node's record. `contract`: of the servers it uses; `codec`: of hidden states on their way there."""
    return pb.QueryNode(
        contract=messages.contract_message(contract),
        name=name,
        addresses=addresses[:MOST_ADDRESSES],
        edges=fitting(edges),
        running=answerer.running,
        capacity=answerer.capacity,
        version=version,
        converses=answerer.converses,
        codec=codec,
        constrains=True,
        sees=answerer.sees,
    )
