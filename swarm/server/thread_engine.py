"""The engine of a server: a thread of its own, which owns the device."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

from swarm.server.batching import DECODE_POSITIONS, patience, slice_of
from swarm.server.computing import compute
from swarm.server.engine import Engine
from swarm.server.runner import Runner
from swarm.server.work import Share, Work
from swarm.types import SequenceKey

ACTIVE = 0.5
"""Seconds after its last step for which a session is expected to come back soon."""
MEASURED_POSITIONS = 32
"""Passes of at least so many positions say what a position of a prompt costs."""


class ThreadEngine(Engine):
    """An engine in a thread of its own, woken by a condition variable; results return to the loop that made it.

    `prefill_slice`: seconds for which prompts may hold up the decode steps of others.
    """

    def __init__(self, runner: Runner, *, prefill_slice: float = 0.1, **options: Any) -> None:
        super().__init__(runner, **options)
        self.prefill_slice = prefill_slice
        self._position_seconds = 0.0
        self._loop = asyncio.get_running_loop()
        self._ready = threading.Condition()
        self._closed = False
        self._seen: dict[bytes, float] = {}
        self._pass_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="swarm-engine", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        with self._ready:
            self._enqueue(work)
            self._ready.notify()

    def cancel(self, session: bytes) -> None:
        with self._ready:
            super().cancel(session)

    def void(self, sequence: SequenceKey, length: int) -> None:
        with self._ready:
            super().void(sequence, length)

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._queues and not self._closed:
                    self._ready.wait()
                self._wait_for_company()
                if self._closed:
                    return
                if not self._queues:
                    continue
                shares = self._take()
                self._running = len(shares)
            began = time.monotonic()
            results = compute(self.runner, shares)
            self.note(shares)
            seconds = self._note_pass(shares, began)
            self._running = 0
            if not self._closed:
                self._loop.call_soon_threadsafe(self._report, results, seconds)

    def _wait_for_company(self) -> None:
        """Hold the pass back for a moment while more sessions are about to come."""
        now = time.monotonic()
        active = sum(seen > now - ACTIVE for seen in self._seen.values())
        deadline = now + patience(len(self._queues), active, self._pass_seconds)
        while not self._closed and self._queues and (left := deadline - time.monotonic()) > 0:
            self._ready.wait(left)
            if patience(len(self._queues), active, self._pass_seconds) == 0.0:
                return

    def _slice(self, heads: Sequence[Work]) -> tuple[int, bool]:
        now, here = time.monotonic(), {work.session for work in heads}
        decoding = any(seen > now - ACTIVE for session, seen in self._seen.items() if session not in here)
        return slice_of(self.prefill_slice, self._position_seconds, self.chunk_positions), decoding

    def _note_pass(self, shares: Sequence[Share], began: float) -> float:
        """Remember who decodes here, and how long a pass of decode steps takes. Returns how long this one took."""
        now = time.monotonic()
        steps = [share.work for share in shares if share.segments]
        decoding = [work.session for work in steps if work.job.positions <= DECODE_POSITIONS]
        self._seen = {session: seen for session, seen in self._seen.items() if seen > now - ACTIVE}
        self._seen.update(dict.fromkeys(decoding, now))
        if decoding and len(decoding) == len(shares):
            self._pass_seconds += 0.3 * (now - began - self._pass_seconds)
        positions = sum(share.positions for share in shares)
        if positions >= MEASURED_POSITIONS and steps:
            each = (now - began) / positions
            self._position_seconds += (0.3 if self._position_seconds else 1.0) * (each - self._position_seconds)
        return now - began

    async def close(self) -> None:
        with self._ready:
            self._closed = True
            self._queues.clear()
            self._ready.notify()
        await asyncio.to_thread(self._thread.join)
