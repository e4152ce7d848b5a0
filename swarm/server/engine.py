"""The engine: one queue of work for the one device, computed batch by batch. It never waits for the network.

What is the same wherever it runs is here; `ThreadEngine` owns a thread (the server), `swarm.testing.InlineEngine` runs
on the event loop in simulated time. Work of one session is computed in the order of submission.
"""

from __future__ import annotations

import abc
import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.errors import ComputeFailed, Gap
from swarm.jobs import Change, Copy, Count, Forward, Reach
from swarm.server.batching import DECODE_POSITIONS, Waiting, choose, serve_fairly
from swarm.server.runner import Runner
from swarm.server.work import Job, Share, Work, cut
from swarm.types import SequenceKey


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: how many steps and positions of them took part, and how long it took."""

    steps: int
    positions: int
    seconds: float

    @property
    def decoding(self) -> bool:
        """Whether no step in it is a prompt's."""
        return self.positions <= DECODE_POSITIONS * self.steps


class Engine(abc.ABC):
    """The queue and the computing; subclasses decide where it runs. `on_pass` hears of passes, on the loop."""

    on_pass: Callable[[Pass], None] = staticmethod(lambda done: None)

    def __init__(self, runner: Runner, *, batch_positions: int = 1024, chunk_positions: int = 256) -> None:
        self.runner = runner
        self.batch_positions = batch_positions
        self.chunk_positions = chunk_positions
        self.beat = 0
        self._queues: dict[bytes, deque[Work]] = {}
        self._running = 0
        self._stepped = True
        """Whether the last pass was of steps."""
        self._served: dict[str, float] = {}
        runner.on_block = self._on_block

    @property
    def queue(self) -> int:
        """Steps waiting or being computed."""
        # A list first: the thread that computes may add and remove sessions meanwhile.
        return sum(map(len, list(self._queues.values()))) + self._running

    @abc.abstractmethod
    def submit(self, work: Work) -> None:
        """Queue one step."""

    def cancel(self, session: bytes) -> None:
        """Forget the session's work that has not begun; of its callbacks only `over` is called."""
        works = self._queues.pop(session, ())
        kept = deque(work for work in works if work.begun or work.kept)
        if kept:
            self._queues[session] = kept
        for work in works:
            if work not in kept:
                work.over()

    def void(self, sequence: SequenceKey, length: int) -> None:
        """Take back waiting work that computes nothing but positions of `sequence` from `length` on.

        A rollback that has just come in ends the sequence there. Where other work builds on it, by changing caches or
        with more positions beside those of other sequences, everything is computed.
        """
        works = self._queues.get(sequence[0], deque())
        waiting = [work for work in works if not work.begun and work.is_beyond(sequence, length, some=True)]
        gone = [work for work in waiting if work.is_beyond(sequence, length)]
        if len(gone) < len(waiting) or any(work.before or isinstance(work.job, Copy) for work in works):
            return
        for work in gone:
            works.remove(work)
            work.voided()
        if not works:
            self._queues.pop(sequence[0], None)

    def change(self, session: bytes, changes: Iterable[Change], done: Callable[[], None] = lambda: None) -> None:
        """Change KV caches after the session's work that is queued by now. Also when the session is cancelled."""
        finish = lambda _: done()  # noqa: E731 - the outcome is the same for output and error
        self.submit(Work(session, Copy(tuple(changes)), finish, finish, kept=True))

    async def settle(self, session: bytes, changes: Sequence[Change] = ()) -> None:
        """Forget the session's waiting work, let what has begun finish, then change KV caches."""
        self.cancel(session)
        await self._ask(session, Copy(tuple(changes)))

    async def bytes_held(self, session: bytes) -> int:
        """What all KV caches hold when it is the turn of `session`; 0 if that could not be found out."""
        answer = await self._ask(session, Count())
        return answer if isinstance(answer, int) else 0

    async def reach(self, session: bytes, sequences: Sequence[SequenceKey]) -> dict[SequenceKey, int]:
        """To which length each of a session's sequences can go back when it is its turn; none if that could not be
        found out."""
        answer = await self._ask(session, Reach(tuple(sequences)))
        return answer if isinstance(answer, dict) else {}

    async def _ask(self, session: bytes, job: Job) -> Any:
        """What comes of a job in its turn: its result, or the error."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def finish(result: Any) -> None:
            if not answer.done():
                answer.set_result(result)

        self.submit(Work(session, job, finish, finish, kept=True))
        return await answer

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop computing; waiting work is forgotten."""

    def _on_block(self) -> None:
        self.beat += 1

    def note(self, shares: Sequence[Share]) -> None:
        """A pass is over. What changes caches is none: whoever waits for the engine must not take it for work."""
        self.beat += any(share.positions for share in shares)

    def _clock(self) -> float:
        return time.monotonic()

    def _enqueue(self, work: Work) -> None:
        work.submitted = self._clock()
        self._queues.setdefault(work.session, deque()).append(work)

    def _take(self) -> list[Share]:
        """Choose the next batch from the oldest work of each session, the clients served least before others."""
        heads = [works[0] for works in self._queues.values()]
        for head in heads:
            # What changes caches comes first: nobody waits for it long, and room that is given away is free.
            if isinstance(head.job, Copy | Count | Reach):
                return [self._share(head, 0)]
        self._served = served = serve_fairly(self._served, (work.client for work in heads))
        heads.sort(key=lambda work: served[work.client])
        sliced, heads = [work for work in heads if work.parts], [work for work in heads if work.segments]
        # In turn with steps: whoever decodes waits for a slice at most. What has begun holds memory until it ends.
        if sliced and (not heads or self._stepped):
            self._stepped = False
            work = next((work for work in sliced if work.begun), sliced[0])
            positions = work.left if work.broken else min(work.slice, work.left)
            served[work.client] += positions / work.weight
            return [self._share(work, positions)]
        self._stepped = True
        waiting = [Waiting(work.job.span, work.left, work.weight) for work in heads if isinstance(work.job, Forward)]
        chunk, decoding = self._slice(heads)
        grants = choose(waiting, self.batch_positions, chunk, decoding=decoding)
        for grant in grants:
            head = heads[grant.index]
            served[head.client] += grant.positions / head.weight
        return [self._share(heads[grant.index], grant.positions) for grant in grants]

    def _slice(self, heads: Sequence[Work]) -> tuple[int, bool]:
        """Positions of prompts in a pass that others wait for, and whether there are others who will soon be back."""
        return self.chunk_positions, False

    def _share(self, work: Work, positions: int) -> Share:
        share = cut(work, positions)
        if not work.begun:
            work.begun, work.started = True, self._clock()
        works = self._queues.pop(work.session)
        if share.ends:
            works.popleft()
        if works:
            self._queues[work.session] = works
        return share

    def _report(self, results: list[tuple[Share, ComputeFailed | Gap | None]], seconds: float) -> None:
        """Tell the sessions, on the event loop."""
        positions = sum(share.positions for share, _ in results if share.segments)
        if positions:
            self.on_pass(Pass(len(results), positions, seconds))
        for share, error in results:
            work = share.work
            work.computing += seconds
            if error is not None:
                work.failed(error)
            elif share.ends:
                work.done(work.result)
            if share.ends:
                work.over()
