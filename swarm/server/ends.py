"""The ends of a model that are served, and their thread: what all clients have ready goes through the head together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from swarm.contract import FINGERPRINT_BYTES
from swarm.errors import ComputeFailed
from swarm.types import EndsRecord

log = logging.getLogger(__name__)

MOST_TOGETHER = 64
"""Rows of several clients that go through the head at once."""


class Ends(Protocol):
    """The ends of one model, for one thread at a time."""

    fingerprint: bytes
    vocabulary: int
    embeddings_count: int
    hidden_size: int
    row_bytes: int
    head_ms: float

    def logits(self, rows: bytes, best: int) -> tuple[bytes, bytes]:
        """As `swarm.models.ends.served.ServedEnds` has it."""

    def embeddings(self, tokens: Sequence[int]) -> bytes:
        """A row each."""


@dataclass(slots=True, eq=False)
class _Work:
    """Rows of one client, and how many logits of each it wants."""

    rows: bytes
    best: int
    done: asyncio.Future[tuple[bytes, bytes]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class HostedEnds:
    """Ends that are served, with a thread of their own. Made on the event loop."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="swarm-ends")
        self._waiting: list[_Work] = []
        self._task: asyncio.Task[None] | None = None
        self.rows = 0
        """That went through the head so far."""

    @property
    def announced(self) -> EndsRecord:
        """For the directory."""
        ends = self.ends
        return EndsRecord(ends.fingerprint[:FINGERPRINT_BYTES], ends.vocabulary, ends.head_ms)

    async def logits(self, rows: bytes, best: int) -> tuple[bytes, bytes]:
        """As `Ends.logits`, together with others' rows of which as many logits are wanted. Raises ComputeFailed."""
        work = _Work(rows, best)
        self._waiting.append(work)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ends")
        return await work.done

    async def embeddings(self, tokens: Sequence[int]) -> bytes:
        """As `Ends.embeddings`. Raises SwarmError."""
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, self.ends.embeddings, tokens)

    async def _run(self) -> None:
        while self._waiting:
            best = self._waiting[0].best
            alike = self._alike(best)
            try:
                await self._compute(alike, best)
            except Exception as error:
                log.exception("the head failed")
                for work in alike:
                    if not work.done.done():
                        work.done.set_exception(ComputeFailed(f"the head failed: {type(error).__name__}"))
        self._task = None

    def _alike(self, best: int) -> list[_Work]:
        """Take the first that waits, and as many others as go with it."""
        taken, left, rows = list[_Work](), list[_Work](), 0
        for work in self._waiting:
            count = len(work.rows) // self.ends.row_bytes
            fits = work.best == best and (not taken or rows + count <= MOST_TOGETHER)
            (taken if fits else left).append(work)
            rows += count if fits else 0
        self._waiting = left
        return taken

    async def _compute(self, works: Sequence[_Work], best: int) -> None:
        together = b"".join(work.rows for work in works)
        run = asyncio.get_running_loop().run_in_executor
        tokens, values = await run(self._thread, self.ends.logits, together, best)
        count = len(together) // self.ends.row_bytes
        self.rows += count
        first = 0
        for work in works:
            last = first + len(work.rows) // self.ends.row_bytes
            if not work.done.done():
                work.done.set_result((_part(tokens, first, last, count), _part(values, first, last, count)))
            first = last

    async def close(self) -> None:
        """Let the pass that runs end."""
        if self._task is not None:
            await self._task
        self._thread.shutdown()


def _part(data: bytes, first: int, last: int, count: int) -> bytes:
    """Of what is there for `count` rows, that of some."""
    width = len(data) // count
    return data[first * width : last * width]
