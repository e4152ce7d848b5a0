"""What answers queries, as those see it who take queries in: over the network, or over HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarm.errors import MissingBlocks
from swarm.types import ModelInfo
from swarm.wire import swarm_pb2 as pb


@dataclass(frozen=True, slots=True)
class Embedded:
    """A text as a vector `[hidden_size]` of length 1, and how many tokens it has."""

    vector: Sequence[float]
    tokens: int


class Answerer(Protocol):
    """Answers queries for one model, many at a time, on the event loop that it belongs to."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def converses(self) -> bool:
        """Whether it takes messages, too: the model has a chat template."""

    @property
    def sees(self) -> bool:
        """Whether messages may show pictures."""

    @property
    def running(self) -> int:
        """Queries that are being answered."""

    @property
    def capacity(self) -> int:
        """Queries that can be answered at a time."""

    @property
    def missing(self) -> MissingBlocks | None:
        """Which blocks nobody serves as is asked, as last seen, and what is known of who does; None: all are served."""

    async def look(self) -> MissingBlocks | None:
        """`missing`, looked for again where some were: their servers may have come since."""

    async def embed(self, queries: Sequence[pb.Query], pooling: str) -> list[Embedded]:
        """The prompts of queries as vectors. `pooling`: "mean" of all positions, or "last". Raises as `answer` does."""

    async def count(self, query: pb.Query) -> int:
        """Tokens of the query's prompt. Raises InvalidInput."""

    def answer(self, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        """Replies from `accepted` to `finished`. Closing the generator ends the query and frees it at every hop.

        Raises InvalidInput (ContextTooLong is one) for what cannot be answered, ServerBusy with `retry_after` when
        there is no room, both before the first reply; later MissingBlocks where a limit to waiting is set, and
        SwarmError for what else ends a query.
        """
