"""Asks query nodes, and goes on with another when one dies: what a peer that holds no part of a model does.

What follows from what is decided in `swarm.client.asking`; this opens streams, reads replies and keeps the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from swarm.client import asking
from swarm.client.asking import Ask, Asking, Broke, Event, Nodes, Phase, Reply, Tick
from swarm.config import QUERY_FRAME_LIMIT, AskerConfig
from swarm.errors import InvalidInput, NetworkError, SwarmError
from swarm.net.base import Directory, Host
from swarm.tasks import ended
from swarm.types import PeerId
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

ID_BYTES = 16
TICK = 0.5
"""Seconds between looks at the clock while nothing comes."""
LARGEST = QUERY_FRAME_LIMIT - (64 << 10)
"""Bytes of a query: the tokens of its answer come to it when another node goes on."""
MOST_UNREAD = 16
"""Replies that are read ahead of who takes them."""


def begun(query: pb.Query) -> pb.Query:
    """A query with an id, and a seed that another node can go on with."""
    copy = pb.Query()
    copy.CopyFrom(query)
    copy.id = copy.id or secrets.token_bytes(ID_BYTES)
    copy.sampling.seed = copy.sampling.seed or secrets.randbits(63)
    return copy


def rest_of(query: pb.Query, state: Asking) -> pb.Query:
    """The query for what is still missing."""
    rest = pb.Query()
    rest.CopyFrom(query)
    rest.generated.extend(state.generated)
    rest.sent_bytes = max(query.sent_bytes, state.sent_bytes)
    return rest


class Asker:
    """Asks the query nodes of one model. `on_node` is told who is asked, each time that it is another."""

    def __init__(
        self,
        host: Host,
        directory: Directory,
        model: str,
        config: AskerConfig | None = None,
        on_node: Callable[[pb.QueryNode], None] = lambda node: None,
    ) -> None:
        self.model = model
        self.on_node = on_node
        self.config = config or AskerConfig()
        self.nodes: list[PeerId] = []
        """Who has been asked so far, in order, of the query under way."""
        self._host = host
        self._directory = directory
        self._avoided: Mapping[PeerId, float] = {}
        self._random = random.Random()

    async def ask(self, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        """The replies to a query, from whichever nodes; `delta` and at last `finished`, as if there were one node.

        Raises InvalidInput for a query that no node can answer, PeerUnreachable when no node has answered for
        `max_wait`, GenerationFailed when one after the other fails at the same place.
        """
        if query.ByteSize() > LARGEST:
            words = f"the query has {query.ByteSize()} bytes, and nodes take {LARGEST}: less text, or smaller pictures"
            raise InvalidInput(words)
        query, self.nodes = begun(query), []
        run = _Run(self, query)
        try:
            async for reply in run.replies():
                yield reply
        finally:
            await run.close()
            self._avoided = run.state.avoided

    async def look(self, known: Sequence[pb.QueryNode]) -> Sequence[pb.QueryNode]:
        """The query nodes as the directory has them now, in any order; those that are `known` where it does not say."""
        with contextlib.suppress(NetworkError):
            nodes = list(await self._directory.query_nodes(self.model))
            self._random.shuffle(nodes)
            return nodes
        return known


class _Run:
    """One query under way: does what its steps want done."""

    def __init__(self, asker: Asker, query: pb.Query) -> None:
        self._asker = asker
        self._query = query
        self._events: asyncio.Queue[Event] = asyncio.Queue(MOST_UNREAD)
        self._reading: asyncio.Task[None] | None = None
        self._pause = asker.config.retry_base
        self._clock = asyncio.get_running_loop().time
        self.state, _ = asking.begin((), asker._avoided, self._clock(), asker.config)

    async def replies(self) -> AsyncGenerator[pb.QueryReply, None]:
        """Until it is over. Raises what it fails with."""
        await self._on(await self._nodes())
        while not self.state.over:
            event = await self._event()
            if isinstance(event, Broke | Tick) or (isinstance(event, Reply) and event.reply.HasField("failure")):
                await self._refresh(event)
            asked = self.state.attempt
            taken = await self._on(event)
            if taken and isinstance(event, Reply) and event.attempt == asked:
                yield event.reply
        if self.state.error is not None:
            raise self.state.error

    async def _nodes(self) -> Nodes:
        """Who could answer this query, as the directory has it now."""
        known = await self._asker.look(self.state.nodes)
        return Nodes(asking.answering(known, self._query))

    async def _event(self) -> Event:
        """What comes next; where nobody is asked, another look into the directory after a pause."""
        if self.state.phase is Phase.CHOOSING:
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, self._asker.config.retry_max)
            return await self._nodes()
        try:
            async with asyncio.timeout(TICK):
                return await self._events.get()
        except TimeoutError:
            return Tick()

    async def _refresh(self, event: Event) -> None:
        """Know who is there before another is chosen."""
        if not isinstance(event, Tick) or asking.is_silent(self.state, self._clock(), self._asker.config):
            await self._on(await self._nodes())

    async def _on(self, event: Event) -> bool:
        """Take a step; returns whether the node that was asked is still listened to, or has finished."""
        before = self.state
        self.state, commands = asking.step(before, event, self._clock(), self._asker.config)
        for command in commands:
            await self._drop()
            if isinstance(command, Ask):
                self._begin(command)
        if self.state.node is not before.node and before.node is not None:
            log.info("%s does not go on with the answer: %s", before.node.peer_id, _why(event))
        return not commands or self.state.phase is Phase.FINISHED

    def _begin(self, command: Ask) -> None:
        self._pause = self._asker.config.retry_base
        self._asker.nodes.append(command.node.peer_id)
        self._asker.on_node(command.node)
        self._reading = asyncio.create_task(self._read(command, rest_of(self._query, self.state)), name="asking")

    async def _read(self, command: Ask, query: pb.Query) -> None:
        """Ask a node, and hand on what it says until it has said all."""
        node, host = command.node, self._asker._host
        try:
            stream = await host.open_stream(node.peer_id, messages.QUERY_PROTOCOL, node.addresses)
            try:
                await stream.send(query.SerializeToString())
                while True:
                    reply = messages.decode(pb.QueryReply, await stream.receive(QUERY_FRAME_LIMIT))
                    await self._events.put(Reply(command.attempt, reply))
            finally:
                stream.close()
        except SwarmError as error:
            await self._events.put(Broke(command.attempt, error))

    async def _drop(self) -> None:
        if self._reading is not None:
            reading, self._reading = self._reading, None
            await ended(reading)

    async def close(self) -> None:
        """Nobody is asked any more."""
        await self._drop()


def _why(event: Event) -> object:
    match event:
        case Broke(_, error):
            return error
        case Reply(_, reply) if reply.HasField("failure"):
            return reply.failure.message
    return "it waits for blocks, or says nothing"
