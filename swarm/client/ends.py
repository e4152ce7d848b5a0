"""The ends of a model at servers that have them, for a client that has none. What one does not answer another does.

Nothing is kept at a server: what is asked is all that it must know, so that there is nothing to replay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from swarm.client.ends_choice import agreed, nearest, offering
from swarm.client.ends_link import EndsLink
from swarm.client.patience import MISSING_PAUSES, Patience
from swarm.client.session import Notice
from swarm.client.trust import Avoidance
from swarm.client.view import View
from swarm.errors import InvalidInput, MissingBlocks, ServerBusy, StreamClosed, SwarmError, UnsupportedModel
from swarm.net.base import Host
from swarm.tasks import ended
from swarm.types import PeerId, ServerRecord
from swarm.wire import ends as wire
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")

LINKS = 8
"""Streams at a time, and things that are asked."""
SMOOTHING = 0.3
"""Weight of the last answer in what a server takes."""
SLOW = 8.0
"""Times as long as it announces that a server may take for a row, before it is taken for gone."""


class Ends:
    """Head and embeddings of the model of `view`, computed by servers. All methods belong to the event loop.

    `on_notice` hears who is asked, and of waiting.
    """

    def __init__(
        self, host: Host, view: View, vocabulary: int, on_notice: Callable[[Notice], None] = lambda notice: None
    ) -> None:
        self.view = view
        self.vocabulary = vocabulary
        self.server: ServerRecord | None = None
        """Who was asked last."""
        self._host = host
        self._config = view.config
        self._on_notice = on_notice
        self._dtype = view.contract.dtype
        self._row_bytes = view.contract.row_bytes
        self._avoided = Avoidance[PeerId](view.config.avoid_peer, view.config.max_avoid)
        self._seen_ms: dict[PeerId, float] = {}
        self._fingerprint: bytes | None = None
        self._idle: dict[PeerId, list[EndsLink]] = {}
        self._places = asyncio.Semaphore(LINKS)

    async def logits(self, rows: bytes, count: int, best: int) -> tuple[bytes, bytes]:
        """Of `count` rows that go into the head: `best` tokens each, uint32, and their logits; 0: no tokens, and all
        logits.

        Raises MissingBlocks when nobody has had the ends for `max_wait`, UnsupportedModel where one row is too much.
        """
        most = wire.rows_at_once(self._row_bytes, self.vocabulary, best, self._dtype)
        if not most:
            raise UnsupportedModel(f"head='remote': {self.vocabulary} logits are more than servers give at once")
        parts = [min(most, count - first) for first in range(0, count, most)]
        begins = range(0, count, most)

        async def part(first: int, many: int) -> tuple[bytes, bytes]:
            hidden = rows[first * self._row_bytes : (first + many) * self._row_bytes]
            request = pb.EndsRequest(head=pb.HeadWanted(rows=many, hidden=hidden, best=best))
            given = (many, self.vocabulary, best, self._dtype)
            return await self._ask(request, "logits", many, lambda reply: wire.check_logits(reply.logits, *given))

        found = await _all([part(first, many) for first, many in zip(begins, parts, strict=True)])
        return b"".join(tokens for tokens, _ in found), b"".join(values for _, values in found)

    async def embeddings(self, tokens: Sequence[int]) -> bytes:
        """Rows of the embeddings. Raises MissingBlocks."""
        most = max(1, wire.tokens_at_once(self._row_bytes))

        def checked(reply: pb.EndsReply, count: int) -> bytes:
            messages.require(len(reply.embedded) == count * self._row_bytes, "embeddings of more or fewer tokens")
            return reply.embedded

        async def part(ids: Sequence[int]) -> bytes:
            request = pb.EndsRequest(embed=pb.Tokens(ids=ids))
            return await self._ask(request, "embedded", 1, lambda reply: checked(reply, len(ids)))

        return b"".join(await _all([part(tokens[i : i + most]) for i in range(0, len(tokens), most)]))

    # ---- who is asked -----------------------------------------------------------------------------------------

    async def _ask(self, request: pb.EndsRequest, kind: str, rows: int, check: Callable[[pb.EndsReply], T]) -> T:
        """What `check` makes of the answer of one server after the other, until it raises nothing."""
        patience, age = Patience(self._config, _now(), has_run=self._fingerprint is not None), self._config.view_refresh
        async with self._places:
            while True:
                try:
                    await self.view.refresh(age, 0.3)
                    record = self._choose()
                except SwarmError as error:
                    patience.bear(error, _now(), error.message)
                    if patience.tells(error, _now()):
                        self._tell("waiting", f"{self.view.model.name}: {error.message}; waiting")
                    await asyncio.sleep(self._config.retry_base * MISSING_PAUSES)
                    age = self._config.retry_base
                    continue
                try:
                    return await self._through(record, request, kind, rows, check)
                except InvalidInput:
                    raise
                except SwarmError as error:
                    self._failed(record, error)

    def _choose(self) -> ServerRecord:
        """Raises MissingBlocks."""
        fit = offering(self.view.found, self._dtype, self.vocabulary)
        mark = agreed(fit, self._fingerprint)
        if mark is None:
            raise MissingBlocks(f"nobody serves the head in {self._dtype} (swarm-serve --serve-ends)")
        last = None if self.server is None else self.server.peer_id
        found = nearest(fit, mark, self._seen_ms, self.view.rtt_ms, self._avoided.active(_now()), last)
        if found is None:
            raise MissingBlocks("no server of the head answers")
        if found.peer_id != last:
            self._tell("route" if last is None else "rerouted", f"head@{found.peer_id[-6:]}")
        self.server, self._fingerprint = found, mark
        return found

    async def _through(
        self, record: ServerRecord, request: pb.EndsRequest, kind: str, rows: int, check: Callable[[pb.EndsReply], T]
    ) -> T:
        """Ask one server. A stream that was idle may have been closed meanwhile: that is nobody's fault."""
        while True:
            link = await self._link(record)
            was_used, began = link.used, _now()
            try:
                found = check(await link.ask(request, kind, self._patience(record, request.ByteSize(), rows)))
            except StreamClosed:
                link.close()
                if was_used:
                    continue
                raise
            except BaseException:
                link.close()
                raise
            took, peer = (_now() - began) * 1000.0, record.peer_id
            if rows == 1:
                before = self._seen_ms.get(peer, took)
                self._seen_ms[peer] = (1 - SMOOTHING) * before + SMOOTHING * took
            self._avoided.forgive(peer)
            self._idle.setdefault(peer, []).append(link)
            return found

    async def _link(self, record: ServerRecord) -> EndsLink:
        if idle := self._idle.get(record.peer_id):
            return idle.pop()
        return await EndsLink.open(self._host, record, self.vocabulary, self._row_bytes, self._config)

    def _patience(self, record: ServerRecord, sent: int, rows: int) -> float:
        head_ms = 0.0 if record.ends is None else record.ends.head_ms
        travels = (sent + rows * wire.logit_bytes(self.vocabulary, 0, self._dtype)) / self._config.slowest_rate
        return self._config.silence + SLOW * rows * head_ms / 1000.0 + travels

    def _failed(self, record: ServerRecord, error: SwarmError) -> None:
        peer = record.peer_id
        log.info("the ends at %s do not answer: %s", peer, error)
        seconds = error.retry_after if isinstance(error, ServerBusy) else None
        self._avoided.add(peer, _now(), seconds, error.message)
        self._seen_ms.pop(peer, None)
        for link in self._idle.pop(peer, []):
            link.close()

    def _tell(self, kind: str, text: str) -> None:
        log.log(logging.WARNING if kind == "waiting" else logging.INFO, "%s", text)
        self._on_notice(Notice(kind, text))

    def close(self) -> None:
        """Hang up."""
        for links in self._idle.values():
            for link in links:
                link.close()
        self._idle.clear()


async def _all(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all give. The first error ends them all."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await ended(*tasks)


def _now() -> float:
    return asyncio.get_running_loop().time()
