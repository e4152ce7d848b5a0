"""A generation's state along a route, which goes on whatever happens to the servers on it.

docs/protocol.md describes the state machine. One task per session changes the route; whatever goes wrong is noted,
coalesced, and answered by one new epoch: repair the route, ask every hop what it has, decide where each resumes. This
file has the steps and the waiting; who is to blame is decided in `blame`, and `epoch` makes the next epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.client.blame import Blame, Verdict
from swarm.client.chunks import LARGEST, stage
from swarm.client.deadlines import Deadlines, Pace, expected_seconds
from swarm.client.diagnosis import find_suspect
from swarm.client.epoch import Epochs, Hearing
from swarm.client.fitness import listed
from swarm.client.link import Event, HopLink
from swarm.client.patience import MISSING_PAUSES, Patience, pause
from swarm.client.sequences import Expected, Piece, Sequences
from swarm.client.statistics import HopStatistics, SessionStatistics
from swarm.client.streams import EpochStreams
from swarm.client.trust import Needs
from swarm.client.view import View
from swarm.config import ClientConfig
from swarm.errors import (
    ContextTooLong,
    InvalidInput,
    MissingBlocks,
    SessionClosed,
    StepVoid,
    SwarmError,
)
from swarm.net.base import Host
from swarm.tasks import Tasks, ended
from swarm.types import Hop, Route, Rows, Span
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

RECALL = 0.3
"""Seconds to wait for the directory before going on with the servers that are known."""
COALESCE = 0.02
"""Seconds in which reports of one incident come together before it is answered."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user may want to see: `kind` is route, rerouted or waiting; `text` says it in words.

    While waiting, `blocks` are those without a server, none where servers are busy; `seconds`: since when.
    """

    kind: str
    text: str
    route: Route | None = None
    blocks: tuple[tuple[int, int], ...] = ()
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Wait:
    """A step whose outputs are on their way."""

    expected: Sequence[Expected]
    done: asyncio.Future[None]


class Session:
    """A session of one model over `span`. All methods belong to the event loop.

    `on_notice` hears of routes, reroutes and waiting. Raises InvalidInput for a span that the model does not have.
    """

    def __init__(
        self,
        host: Host,
        view: View,
        span: Span,
        *,
        config: ClientConfig,
        on_notice: Callable[[Notice], None] = lambda notice: None,
        rng: random.Random | None = None,
    ) -> None:
        if span.last > view.model.blocks:
            raise InvalidInput(f"span {span} is beyond the {view.model.blocks} blocks of {view.model.name}")
        self.view = view
        self.span = span
        self.row_bytes = view.contract.row_bytes
        self.config = config
        self.reroutes = 0
        self._on_notice = on_notice
        self._random = rng or random.Random()
        self._tasks = Tasks(log)
        self._sequences = Sequences(self.row_bytes)
        self._blame = Blame(view.trust, config)
        hearing = Hearing(self._on_result, self._on_broken, self._on_event)
        self._epochs = Epochs(host, view, span, self._sequences, self._blame, self._tasks, hearing)
        self._waits: list[_Wait] = []
        self._watcher: asyncio.Task[None] | None = None
        self._pace = Pace()
        self._last_sign = 0.0
        self._trouble = asyncio.Event()
        self._maintainer: asyncio.Task[None] | None = None
        self._closed = False

    def __str__(self) -> str:
        return f"a session on {self.span} of {self.view.model.name}"

    @property
    def route(self) -> Route | None:
        """The route in use, once there is one."""
        return self._epochs.route

    @property
    def can_rollback(self) -> bool:
        """Whether the blocks on the route can forget single positions; True as long as there is no route."""
        return all(link.can_rollback for link in self._epochs.links)

    def length(self, sequence: int) -> int:
        """Positions that the sequence holds."""
        return self._sequences.length(sequence)

    def statistics(self) -> SessionStatistics:
        """How it stands."""
        streams, sequences = self._epochs.streams, self._sequences
        return SessionStatistics(
            epochs=self._epochs.number,
            reroutes=self.reroutes,
            setbacks=self._blame.setbacks,
            sequences=len(sequences.lengths),
            positions=sequences.positions,
            waiting=len(self._waits),
            codecs=tuple(codec.name for codec in streams.codecs) if streams is not None else (),
            hops=tuple(HopStatistics(link.hop, link.rtt_ms, link.rates) for link in self._epochs.links),
        )

    # ---- steps ------------------------------------------------------------------------------------------------

    async def step(self, rows: Sequence[Rows], operations: Sequence[pb.Operation] = ()) -> list[bytes]:
        """Apply `operations`, compute `rows` along the route, and return the outputs wanted of each.

        Steps may follow each other without waiting for the outputs of those before: they are issued in the order of
        the calls. An operation that ends a sequence makes void what is still awaited of it: StepVoid.

        Survives every failure of servers and links. Raises ContextTooLong and InvalidInput before any work;
        NoServerFits when there are servers and none will ever compute what is asked, LimitExceeded when it is more than
        any of them gives one session; MissingBlocks (or ServerBusy, or NetworkError) when that lasts for `max_wait`;
        GenerationFailed when the same step fails on every server, DaemonFailed when this client's own p2pd is gone,
        SessionClosed.
        """
        self._epochs.admit(self._check(rows, self._sequences.preview(operations)))
        self._sequences.operate(operations)
        self._settle()
        if not self._waits:
            self._blame.step_begins()
        issued = [self._sequences.append(row) for row in rows]
        self._issue([piece for piece, _ in issued], operations)
        expected = [outputs for _, outputs in issued]
        if not all(outputs.complete for outputs in expected):
            await self._outputs(expected)
        return [outputs.outputs for outputs in expected]

    def _check(self, rows: Sequence[Rows], lengths: Mapping[int, int]) -> Needs:
        """Whether these rows can follow sequences of these lengths; what the session then holds."""
        if self._closed:
            raise SessionClosed("the session is closed")
        if len({row.sequence for row in rows}) < len(rows):
            raise InvalidInput("a sequence is named twice in one step")
        limit, after = self.view.model.context_length, dict(lengths)
        for row in rows:
            count, rest = divmod(len(row.hidden), self.row_bytes)
            if rest or not count or not 0 <= row.want <= count:
                raise InvalidInput(f"{len(row.hidden)} bytes of which {row.want} rows of {self.row_bytes} are wanted")
            if row.sequence not in lengths:
                self._sequences.check_new(row.sequence)
            after[row.sequence] = total = lengths.get(row.sequence, 0) + count
            if limit is not None and total > limit:
                raise ContextTooLong(f"{total} positions are more than the {limit} of {self.view.model.name}")
        return Needs.of(after)

    def _issue(self, pieces: Sequence[Piece], operations: Sequence[pb.Operation]) -> None:
        chunk = self._epochs.chunk(sum(piece.count for piece in pieces))
        steps = self._sequences.pack(pieces, chunk, self._epochs.grain)
        if operations:
            first = steps[0] if steps else pb.Step()
            first.operations.extend(operations)
            steps = steps or [first]
        self._epochs.put(steps)
        if self._epochs.streams is None:
            self._trouble.set()
        if self._maintainer is None:
            self._maintainer = self._tasks.spawn(self._maintain(), name=f"maintaining {self}")

    async def _outputs(self, expected: Sequence[Expected]) -> None:
        """Wait for outputs, or the error that ends the waiting."""
        wait = _Wait(expected, asyncio.get_running_loop().create_future())
        self._waits.append(wait)
        if len(self._waits) == 1:
            self._last_sign = _now()
        if self._epochs.streams is None:
            self._trouble.set()
        if self._watcher is None:
            self._watcher = self._tasks.spawn(self._watch(), name=f"watching {self}")
        try:
            await wait.done
        finally:
            self._waits.remove(wait)
            self._sequences.give_up(expected)

    async def _watch(self) -> None:
        """As long as outputs are waited for, look into it when they are late."""
        loop = asyncio.get_running_loop()
        try:
            while self._waits:
                deadlines = self._deadlines()
                patience = self._last_sign + deadlines.late - loop.time()
                if patience <= 0.0:
                    patience = deadlines.probe_interval
                    if self._epochs.streams is not None:
                        self._look_into(self._epochs.streams, deadlines.silence)
                await asyncio.wait([wait.done for wait in self._waits[-1:]], timeout=patience)
        finally:
            self._watcher = None

    def _deadlines(self) -> Deadlines:
        """By when the outputs that are waited for should come."""
        links = self._epochs.links
        expected = expected_seconds([stage(link.hop) for link in links], [link.rtt_ms or 0.0 for link in links])
        return self._pace.deadlines(self._under_way, expected, self.config)

    @property
    def _under_way(self) -> int:
        """Positions that were sent since the last outputs came."""
        streams = self._epochs.streams
        return streams.unconfirmed // self.row_bytes if streams is not None else 0

    def _on_result(self, step: pb.Step) -> None:
        if self._sequences.deliver(step):
            self._pace.note(_now() - self._last_sign, self._under_way)
            self._last_sign = _now()
            if self._epochs.streams is not None:
                self._epochs.streams.unconfirmed = 0
            self._blame.works(link.hop for link in self._epochs.links)
            self._settle()

    def _settle(self) -> None:
        """Wake who has all that was waited for, and whose sequence has ended."""
        for wait in self._waits:
            if wait.done.done():
                continue
            if any(outputs.void for outputs in wait.expected):
                wait.done.set_exception(StepVoid("the sequence was ended before its outputs came"))
            elif all(outputs.complete for outputs in wait.expected):
                wait.done.set_result(None)

    def _fail(self, error: BaseException) -> None:
        for wait in self._waits:
            if not wait.done.done():
                wait.done.set_exception(error)

    # ---- what goes wrong --------------------------------------------------------------------------------------

    def _look_into(self, streams: EpochStreams, silence: float) -> None:
        """Ask every hop how far it is, and judge by what they last said: dead, who was silent for `silence` seconds."""
        frame = (self.config.chunk_positions or LARGEST) * self.row_bytes
        reports, lengths = [link.report() for link in streams.links], self._sequences.lengths
        suspect = find_suspect(reports, lengths, _now(), self.config, silence, frame, streams.unconfirmed)
        if suspect is None:
            for link in streams.links:
                self._tasks.spawn(_quietly(link.probe()), name=f"probing {link}")
            return
        log.warning("suspecting %s: %s", streams.links[min(suspect.index, len(streams.links) - 1)], suspect.reason)
        self._carry_out(self._blame.suspect(streams.route, suspect, _now()))
        self._break()

    def _on_event(self, link: HopLink, event: Event) -> None:
        """A hop says something unasked, or its control stream is lost."""
        index, route = self._epochs.index_of(link), self._epochs.route
        if index is None or route is None or (isinstance(event, pb.Leaving) and not self._epochs.leaves(link)):
            return
        log.info("%s: %s", link, event)
        if isinstance(event, pb.Leaving):
            self._blame.leaves(link.hop, event.deadline, _now())
        elif isinstance(event, pb.LinkDown):
            self._blame.link_down(route, index, _now(), closed_here=self._epochs.is_broken)
        elif isinstance(event, pb.Failure):
            self._carry_out(self._blame.failed(route.hops, index, link.error_of(event), _now()))
        else:
            self._blame.doubt(link.hop)
        self._break()

    def _on_broken(self, index: int, error: SwarmError) -> None:
        """A data stream between a hop and this client failed."""
        log.info("the data stream with hop %d failed: %s", index, error)
        hops = [link.hop for link in self._epochs.links]
        self._carry_out(self._blame.stream_failed(hops, index, error, _now()))
        self._break()

    def _carry_out(self, verdict: Verdict) -> None:
        self._epochs.carry_out(verdict)
        if verdict.ends is not None:
            self._fail(verdict.ends)

    def _break(self) -> None:
        """End this epoch's streams; the maintainer builds the next. Idle sessions wait for their next step."""
        self._epochs.end()
        if self._waits or self._epochs.has_leavers:
            self._trouble.set()

    # ---- routes -----------------------------------------------------------------------------------------------

    async def _maintain(self) -> None:
        """The one task that changes the route."""
        while True:
            await self._trouble.wait()
            if self._blame.setbacks or self._epochs.number:
                await asyncio.sleep(COALESCE)
            self._trouble.clear()
            try:
                await self._establish()
            except SwarmError as error:
                self._fail(error)
            except Exception as error:
                log.exception("changing the route failed")
                self._fail(error)

    async def _establish(self) -> None:
        """Try until the session runs again. Raises what nobody can mend, and whatever has lasted for `max_wait`."""
        waiting = Patience(self.config, _now(), has_run=self._epochs.has_run)
        refresh = self.config.view_refresh if self._epochs.number == 0 else 1.0
        patience: float | None = RECALL
        while self._epochs.streams is None:
            try:
                await self._attempt(refresh, patience)
            except SwarmError as error:
                log.info("no route after %.1f s: %s", waiting.waited(_now()), error)
                missing, seen = isinstance(error, MissingBlocks), self._seen(error)
                waiting.bear(error, _now(), seen)
                if waiting.tells(error, _now()):
                    self._notify_waiting(error, seen, waiting.waited(_now()))
                patience = None if missing else RECALL
                if missing:
                    await asyncio.sleep(self.config.retry_base * MISSING_PAUSES)
            refresh = self.config.retry_base

    async def _attempt(self, refresh: float, patience: float | None) -> None:
        """Try once, by a reading of the directory that is at most `refresh` seconds old or takes `patience` seconds."""
        if seconds := pause(self._blame.setbacks, self.config, self._random):
            await asyncio.sleep(seconds)
        self._carry_out(self._blame.judge(_now()))
        await self.view.refresh(refresh, patience)
        self._blame.attempt()
        await self._epochs.begin()
        self._last_sign = _now()
        self._pace.begin()
        changed = self._epochs.number > 1
        self.reroutes += changed
        self._notice("rerouted" if changed else "route", str(self.route))

    def _seen(self, error: SwarmError) -> str:
        """What is the matter, and with whom."""
        misfits = [] if isinstance(error, MissingBlocks) else self._epochs.misfits()
        return f"no route now: {listed(misfits)}" if misfits else error.message

    def _notify_waiting(self, error: SwarmError, seen: str, seconds: float) -> None:
        text = f"{self.view.model.name}: {seen}, since {seconds:.0f} s; waiting"
        self._notice("waiting", text, error.blocks if isinstance(error, MissingBlocks) else (), seconds)

    def _notice(self, kind: str, text: str, blocks: tuple[tuple[int, int], ...] = (), seconds: float = 0.0) -> None:
        log.log(logging.WARNING if kind == "waiting" else logging.INFO, "%s", text)
        self._on_notice(Notice(kind, text, self.route, blocks, seconds))

    async def trace(self) -> list[tuple[Hop, Sequence[pb.Tally]]]:
        """Where the time of this session's steps went, hop by hop; of hops that do not answer, nothing."""

        async def ask(link: HopLink) -> Sequence[pb.Tally]:
            try:
                return await link.trace()
            except SwarmError:
                return ()

        links = self._epochs.links
        told = await asyncio.gather(*(ask(link) for link in links))
        return [(link.hop, tallies) for link, tallies in zip(links, told, strict=True)]

    # ---- the end ----------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Free what the servers hold, at once. A step under way ends with SessionClosed."""
        if self._closed:
            return
        self._closed = True
        self._fail(SessionClosed("the session was closed"))
        await ended(*(task for task in (self._maintainer, self._watcher) if task is not None))
        await self._epochs.close()
        await self._tasks.close()


async def _quietly(asking: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(SwarmError):
        await asking


def _now() -> float:
    return asyncio.get_running_loop().time()
