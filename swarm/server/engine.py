"""The engine: one queue of work for the one device, computed batch by batch. It never waits for the network.

Two engines share everything but where they run: `ThreadEngine` owns a thread (the server), `InlineEngine` runs on
the event loop in simulated time (tests). Work of one session is computed in the order of submission.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from swarm.errors import ComputeFailed
from swarm.server.batching import DECODE_POSITIONS, Waiting, choose, patience, serve_fairly, slice_of
from swarm.types import Segment, SequenceKey, Span
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import Buffer

log = logging.getLogger(__name__)

ACTIVE = 0.5
"""Seconds after its last step for which a session is expected to come back soon."""
MEASURED_POSITIONS = 32
"""Passes of at least so many positions say what a position of a prompt costs."""

FORK, MOVE = pb.Operation.FORK, pb.Operation.MOVE


class Runner(Protocol):
    """What computes: the blocks of a span and the KV cache of every sequence. Called from one thread only."""

    @property
    def can_rollback(self) -> bool: ...

    on_block: Callable[[], None] | None
    """Called after each block of a forward pass: the heartbeat."""

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        """Compute the rows of all segments through the blocks of `span`, appending to each sequence's KV cache."""

    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def truncate(self, sequence: SequenceKey, length: int) -> None: ...
    def free(self, sequence: SequenceKey) -> None: ...
    def bytes_held(self) -> int: ...
    def bytes_per_token(self, span: Span) -> int: ...


@dataclass(slots=True, eq=False)
class Work:
    """One step of one session: operations, then rows. `done` gets the outputs, or `failed` the error, on the loop.

    `voided` is called instead where `Engine.void` took the work back. `client`: on whose account it is served.
    `action` is run after the operations, where the runner lives. `over` is called on the loop, last of all, when the
    work was computed, failed or cancelled: nothing of it will be run any more. `submitted` and `started` are times of
    the engine's clock, `computing` the seconds of its passes.
    """

    session: bytes
    span: Span
    segments: Sequence[Segment]
    hidden: memoryview
    done: Callable[[Buffer], None]
    failed: Callable[[ComputeFailed], None]
    operations: Sequence[pb.Operation] = ()
    voided: Callable[[], None] = lambda: None
    client: str = ""
    action: Callable[[], None] | None = None
    over: Callable[[], None] = lambda: None
    taken: int = 0
    begun: bool = False
    broken: bool = False
    submitted: float = 0.0
    started: float = 0.0
    computing: float = 0.0
    outputs: list[memoryview] = field(default_factory=list)

    @property
    def positions(self) -> int:
        return sum(segment.count for segment in self.segments)


@dataclass(slots=True)
class _Share:
    """The part of a work that takes part in one forward pass."""

    work: Work
    segments: list[Segment]
    hidden: memoryview
    last: bool


def _cut(work: Work, positions: int) -> _Share:
    """The next `positions` positions of a work."""
    segments, skip, left = [], work.taken, positions
    for segment in work.segments:
        begin, skip = min(skip, segment.count), max(skip - segment.count, 0)
        count = min(segment.count - begin, left)
        if count:
            segments.append(Segment(segment.sequence, segment.start + begin, count))
            left -= count
    row = len(work.hidden) // max(work.positions, 1)
    hidden = work.hidden[work.taken * row : (work.taken + positions) * row]
    return _Share(work, segments, hidden, work.taken + positions == work.positions)


def _is_beyond(work: Work, sequence: SequenceKey, length: int, *, some: bool = False) -> bool:
    """Whether all (or some) of a work is positions of `sequence` from `length` on."""
    beyond = [segment.sequence == sequence and segment.start >= length for segment in work.segments]
    return any(beyond) if some else bool(beyond) and all(beyond)


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
        begun = deque(work for work in works if work.begun or isinstance(work, _Action))
        if begun:
            self._queues[session] = begun
        for work in works:
            if work not in begun:
                work.over()

    def void(self, sequence: SequenceKey, length: int) -> None:
        """Take back waiting work that computes nothing but positions of `sequence` from `length` on.

        A rollback that has just come in ends the sequence there. Where other work builds on it, by an operation or with
        more positions beside those of other sequences, everything is computed.
        """
        works = self._queues.get(sequence[0], deque())
        waiting = [work for work in works if not work.begun and _is_beyond(work, sequence, length, some=True)]
        gone = [work for work in waiting if _is_beyond(work, sequence, length)]
        if len(gone) < len(waiting) or any(work.operations or work.action for work in works):
            return
        for work in gone:
            works.remove(work)
            work.voided()
        if not works:
            self._queues.pop(sequence[0], None)

    def act(self, session: bytes, action: Callable[[], None], done: Callable[[], None] = lambda: None) -> None:
        """Run `action` where the runner lives, after the session's work that is queued by now."""
        finish = lambda _: done()  # noqa: E731 - the outcome is the same for output and error
        self.submit(_Action(session, Span(0, 1), (), memoryview(b""), finish, finish, action=action))

    async def settle(self, session: bytes, action: Callable[[], None] = lambda: None) -> None:
        """Forget the session's waiting work, let what has begun finish, then run `action` where the runner lives."""
        self.cancel(session)
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def finish() -> None:
            if not settled.done():
                settled.set_result(None)

        self.act(session, action, finish)
        await settled

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop computing; waiting work is forgotten."""

    def _on_block(self) -> None:
        self.beat += 1

    def _clock(self) -> float:
        return time.monotonic()

    def _enqueue(self, work: Work) -> None:
        work.submitted = self._clock()
        self._queues.setdefault(work.session, deque()).append(work)

    def _take(self) -> list[_Share]:
        """Choose the next batch from the oldest work of each session, the clients served least before others."""
        heads = [works[0] for works in self._queues.values()]
        if not heads[0].segments:
            return [self._share(heads[0], 0)]
        self._served = served = serve_fairly(self._served, (work.client for work in heads))
        heads = sorted((work for work in heads if work.segments), key=lambda work: served[work.client])
        waiting = [Waiting(work.span, work.positions - work.taken) for work in heads]
        chunk, decoding = self._slice(heads)
        grants = choose(waiting, self.batch_positions, chunk, decoding=decoding)
        for grant in grants:
            served[heads[grant.index].client] += grant.positions
        return [self._share(heads[grant.index], grant.positions) for grant in grants]

    def _slice(self, heads: Sequence[Work]) -> tuple[int, bool]:
        """Positions of prompts in a pass that others wait for, and whether there are others who will soon be back."""
        return self.chunk_positions, False

    def _share(self, work: Work, positions: int) -> _Share:
        share = _cut(work, positions)
        if not work.begun:
            work.begun, work.started = True, self._clock()
        works = self._queues.pop(work.session)
        if share.last:
            works.popleft()
        if works:
            self._queues[work.session] = works
        return share

    def _compute(self, shares: list[_Share]) -> list[tuple[_Share, ComputeFailed | None]]:
        """One forward pass for all; when it fails, each alone, so that one session's trouble stays its own."""
        try:
            self._forward(shares)
            return [(share, None) for share in shares]
        except Exception as error:
            if len(shares) == 1:
                return [(shares[0], self._broken(shares[0].work, error))]
            log.warning("a pass over %d sessions failed (%r); each runs alone", len(shares), error)
            return [self._compute_alone(share) for share in shares]

    def _compute_alone(self, share: _Share) -> tuple[_Share, ComputeFailed | None]:
        try:
            # The failed pass may have appended to some blocks' caches: back to where the step began.
            for segment in share.segments:
                self.runner.truncate(segment.sequence, segment.start)
            self._forward([share])
            return share, None
        except Exception as error:
            return share, self._broken(share.work, error)

    @staticmethod
    def _broken(work: Work, error: Exception) -> ComputeFailed:
        work.broken = True
        log.error("a step of session %s failed", work.session.hex()[:8], exc_info=error)
        return ComputeFailed(f"the engine failed: {type(error).__name__}: {error}")

    def _forward(self, shares: list[_Share]) -> None:
        for share in shares:
            if share.work.broken:
                raise RuntimeError("an earlier part of this step failed")
            self._operate(share)
        segments = [segment for share in shares for segment in share.segments]
        if segments:
            hidden = shares[0].hidden if len(shares) == 1 else memoryview(b"".join(s.hidden for s in shares))
            output = self.runner.forward(shares[0].work.span, segments, hidden)
            self._distribute(shares, output)
        self.beat += 1

    def _operate(self, share: _Share) -> None:
        """Apply what comes before the rows of a step; once, also when the pass is repeated."""
        operations, share.work.operations = share.work.operations, ()
        action, share.work.action = share.work.action, None
        session = share.work.session
        try:
            for operation in operations:
                source, target = (session, operation.source), (session, operation.target)
                if operation.kind == FORK:
                    self.runner.fork(source, target, operation.length)
                elif operation.kind == MOVE:
                    self.runner.move(source, target, operation.length)
                else:
                    self.runner.free(source)
            if action is not None:
                action()
        except Exception:
            share.work.broken = True
            raise

    @staticmethod
    def _distribute(shares: list[_Share], output: memoryview) -> None:
        begin = 0
        for share in shares:
            end = begin + len(share.hidden)
            share.work.outputs.append(output[begin:end])
            share.work.taken += sum(segment.count for segment in share.segments)
            begin = end

    def _report(self, results: list[tuple[_Share, ComputeFailed | None]], seconds: float) -> None:
        """Tell the sessions, on the event loop."""
        positions = sum(segment.count for share, _ in results for segment in share.segments)
        if positions:
            self.on_pass(Pass(len(results), positions, seconds))
        for share, error in results:
            work = share.work
            work.computing += seconds
            if error is not None:
                work.failed(error)
            elif share.last:
                work.done(work.outputs[0] if len(work.outputs) == 1 else b"".join(work.outputs))
            if share.last:
                work.over()


@dataclass(slots=True, eq=False)
class _Action(Work):
    """Something else to do where the runner lives, in turn with the session's work. It is never cancelled."""


class InlineEngine(Engine):
    """An engine on the event loop, for simulations: a pass takes `seconds(positions)` of the loop's own time."""

    def __init__(
        self, runner: Runner, *, seconds: Callable[[int], float] = lambda positions: 0.0, **options: Any
    ) -> None:
        super().__init__(runner, **options)
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def submit(self, work: Work) -> None:
        self._enqueue(work)
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    def _clock(self) -> float:
        return asyncio.get_running_loop().time()

    async def _run(self) -> None:
        while self._queues:
            shares = self._take()
            self._running = len(shares)
            began = self._clock()
            await asyncio.sleep(self._seconds(sum(s.count for share in shares for s in share.segments)))
            results = self._compute(shares)
            self._running = 0
            self._report(results, self._clock() - began)
        self._task = None

    async def close(self) -> None:
        self._queues.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


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
            results = self._compute(shares)
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

    def _note_pass(self, shares: list[_Share], began: float) -> float:
        """Remember who decodes here, and how long a pass of decode steps takes. Returns how long this one took."""
        now = time.monotonic()
        decoding = [s.work.session for s in shares if s.segments and s.work.positions <= DECODE_POSITIONS]
        self._seen = {session: seen for session, seen in self._seen.items() if seen > now - ACTIVE}
        self._seen.update(dict.fromkeys(decoding, now))
        if decoding and len(decoding) == len(shares):
            self._pass_seconds += 0.3 * (now - began - self._pass_seconds)
        positions = sum(segment.count for share in shares for segment in share.segments)
        if positions >= MEASURED_POSITIONS:
            each = (now - began) / positions
            self._position_seconds += (0.3 if self._position_seconds else 1.0) * (each - self._position_seconds)
        return now - began

    async def close(self) -> None:
        with self._ready:
            self._closed = True
            self._queues.clear()
            self._ready.notify()
        await asyncio.to_thread(self._thread.join)
