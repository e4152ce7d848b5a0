"""Asks query nodes, and goes on with another when one dies: what a peer that holds no part of a model does.

The state of a query is with the asker: the prompt, the seed and the tokens so far. `absorb` keeps it, purely.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import AsyncGenerator, Callable

from swarm.config import QUERY_FRAME_LIMIT, AskerConfig
from swarm.errors import (
    ContextTooLong,
    GenerationFailed,
    InvalidInput,
    MalformedFrame,
    NetworkError,
    PeerUnreachable,
    ServerBusy,
    SwarmError,
)
from swarm.net.base import Directory, Host, Stream
from swarm.types import PeerId
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

ID_BYTES = 16
HOPELESS = (InvalidInput, ContextTooLong)
"""What another node would say, too."""
MOST_FAILURES = 8
"""Nodes that may fail one after the other without a token between; then the query is given up."""


def begin(query: pb.Query) -> pb.Query:
    """A query with an id, and a seed that another node can go on with."""
    begun = pb.Query()
    begun.CopyFrom(query)
    begun.id = begun.id or secrets.token_bytes(ID_BYTES)
    begun.sampling.seed = begun.sampling.seed or secrets.randbits(63)
    return begun


def absorb(query: pb.Query, reply: pb.QueryReply) -> None:
    """Note in the query what its asker has now. Raises MalformedFrame when text goes backwards."""
    if reply.WhichOneof("kind") == "delta":
        if reply.delta.sent_bytes < query.sent_bytes:
            raise MalformedFrame("the text of an answer cannot become shorter")
        query.generated.extend(reply.delta.tokens)
        query.sent_bytes = reply.delta.sent_bytes


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
        """Who has answered so far, in order, of the query under way."""
        self._host = host
        self._directory = directory
        self._avoided: dict[PeerId, float] = {}
        self._random = random.Random()

    async def ask(self, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        """The replies to a query, from whichever nodes; `delta` and at last `finished`, as if there were one node.

        Raises InvalidInput for a query that no node can answer, ServerBusy or PeerUnreachable when no node has
        answered for `max_wait`, GenerationFailed when one after the other fails at the same place.
        """
        query, failures = begin(query), 0
        self.nodes = []
        first: pb.QueryNode | None = None
        while True:
            node = await self._node(first)
            before = len(query.generated)
            self.nodes.append(node.peer_id)
            self.on_node(node)
            try:
                async with contextlib.aclosing(self._ask(node, query)) as replies:
                    async for reply in replies:
                        absorb(query, reply)
                        first = first or (node if query.generated else None)
                        yield reply
                        if reply.WhichOneof("kind") == "finished":
                            return
            except HOPELESS:
                raise
            except SwarmError as error:
                log.info("%s does not go on with the answer: %s", node.peer_id, error)
                failures = 0 if len(query.generated) > before or isinstance(error, ServerBusy) else failures + 1
                if failures >= MOST_FAILURES:
                    raise GenerationFailed(f"{failures} query nodes failed one after the other: {error}") from error
                self._avoid(node.peer_id, error)

    async def _ask(self, node: pb.QueryNode, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        """What one node replies, till its end. Raises SwarmError, also when it falls silent."""
        stream = await self._open(node, query)
        try:
            while True:
                reply = await self._receive(stream)
                if reply.WhichOneof("kind") == "failure":
                    raise messages.error_of(reply.failure, node.peer_id)
                yield reply
        finally:
            stream.close()

    async def _open(self, node: pb.QueryNode, query: pb.Query) -> Stream:
        try:
            async with asyncio.timeout(self.config.open_timeout):
                stream = await self._host.open_stream(node.peer_id, messages.QUERY_PROTOCOL, node.addresses)
                await stream.send(query.SerializeToString())
        except TimeoutError:
            raise PeerUnreachable(f"{node.peer_id} does not answer") from None
        return stream

    async def _receive(self, stream: Stream) -> pb.QueryReply:
        try:
            async with asyncio.timeout(self.config.silence):
                return messages.decode(pb.QueryReply, await stream.receive(QUERY_FRAME_LIMIT))
        except TimeoutError:
            raise PeerUnreachable(f"{stream.peer_id} has fallen silent") from None

    def _avoid(self, peer_id: PeerId, error: SwarmError) -> None:
        seconds = error.retry_after if isinstance(error, ServerBusy) else self.config.retry_max
        self._avoided[peer_id] = asyncio.get_running_loop().time() + seconds

    async def _node(self, first: pb.QueryNode | None) -> pb.QueryNode:
        """The node with the most room, of those that did not fail just now. Raises PeerUnreachable.

        One that computes otherwise than the `first` would go on with other words: it is not taken.
        """
        loop, wait = asyncio.get_running_loop(), self.config.retry_base
        began = loop.time()
        while True:
            with contextlib.suppress(NetworkError):
                nodes = await self._directory.query_nodes(self.model)
                now = loop.time()
                usable = [
                    node
                    for node in nodes
                    if self._avoided.get(node.peer_id, 0.0) <= now and (first is None or way(node) == way(first))
                ]
                if usable:
                    return min(usable, key=lambda node: (load(node), self._random.random()))
            if self.config.max_wait is not None and loop.time() - began >= self.config.max_wait:
                alike = "" if first is None else f" that computes in {way(first)}"
                waited = f"has answered for {self.config.max_wait:.0f} s"
                raise PeerUnreachable(f"no query node of this model{alike} {waited}")
            await asyncio.sleep(wait)
            wait = min(2 * wait, self.config.retry_max)


def way(node: pb.QueryNode) -> str:
    """How a node's answers are computed, as far as that changes them."""
    sent = "" if node.codec in ("", "raw") else f", sent as {node.codec}"
    return messages.contract_of(node.contract).numbers + sent


def load(node: pb.QueryNode) -> float:
    """How full a node says that it is, 0 to 1."""
    return node.running / node.capacity if node.capacity else 1.0
