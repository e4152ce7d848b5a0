"""A generation's state along a route, which goes on whatever happens to the servers on it.

A session knows its sequences and who waits for outputs. What computes them are lanes: one, which repairs its route when
something fails, and with `standby` a second one beside it, on other servers, that computes the same behind it. Outputs
are matched by sequence and position, so that it does not matter which of both brings them. With `compare=2` both have
to bring the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from swarm.client.auditor import Auditor
from swarm.client.audits import Audits
from swarm.client.lane import Hears, Lane
from swarm.client.link import HopLink
from swarm.client.matrices import NOTHING, Matrices
from swarm.client.operators import wholly_apart_from
from swarm.client.outputs import Outputs
from swarm.client.paired import Paired
from swarm.client.pairing import Pairing
from swarm.client.sequences import Expected, Piece, Sequences
from swarm.client.standby import apart_from
from swarm.client.statistics import HopStatistics, SessionStatistics
from swarm.client.trust import Needs
from swarm.client.view import View
from swarm.config import ClientConfig
from swarm.errors import ContextTooLong, InvalidInput, SessionClosed, StepVoid, SwarmError
from swarm.net.base import Host
from swarm.tasks import Tasks
from swarm.types import Hop, PeerId, Route, Rows, Span
from swarm.wire import swarm_pb2 as pb
from swarm.wire.places import planes_in

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user may want to see: `kind` is route, rerouted, waiting or disputed; `text` says it in words.

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
        matrices: Matrices = NOTHING,
    ) -> None:
        if span.last > view.model.blocks:
            raise InvalidInput(f"span {span} is beyond the {view.model.blocks} blocks of {view.model.name}")
        self.view = view
        self.span = span
        self.row_bytes = view.contract.row_bytes
        self.config = config
        self.raced = 0
        """Times that the standby brought outputs first."""
        self._on_notice = on_notice
        self._tasks = Tasks(log)
        self._sequences = Sequences(self.row_bytes)
        self._sequences.matrices = matrices
        self._waits: list[_Wait] = []
        self._closed = False
        self._host = host
        self._random = rng = rng or random.Random()
        pins = dict[int, bytes]()
        hears = Hears(
            self._on_result, self._on_failed, self._on_began, self._on_slow, self._notice, lambda: bool(self._waits)
        )
        lanes = host, view, span, self._sequences, pins, self._tasks, hears, rng
        self._lane = Lane(*lanes)
        comparing = config.compare == 2
        if comparing and matrices.some:
            raise InvalidInput("compare=2: what adapters change cannot be compared yet; leave one of both out")
        self._spare = None
        if config.standby or comparing:
            self._spare = Lane(*lanes, apart=self._apart, wholly_apart=comparing)
        self._pairing = self._make_pairing(pins, self._spare) if comparing and self._spare is not None else None
        self._audits = self._make_audits(pins) if config.audits and not comparing and not matrices.some else None

    def _make_pairing(self, pins: dict[int, bytes], spare: Lane) -> Pairing:
        paired = Paired(self._sequences, self.view.contract.dtype)
        auditor = Auditor(self._host, self.view, pins, self._random, paired.noise)
        return Pairing(
            (self._lane, spare),
            self._sequences,
            paired,
            auditor,
            self._tasks,
            lambda step: self._deliver(self._lane, step),
            self._fail,
            lambda: bool(self._waits),
            lambda text, seconds: self._notice("waiting", text, (), seconds),
        )

    def _make_audits(self, pins: dict[int, bytes]) -> Audits:
        return Audits(
            Auditor(self._host, self.view, pins, self._random),
            Outputs(self._sequences),
            self.view.trust.integrity,
            self._random,
            lambda work, name: self._tasks.spawn(work, name=name),
            self._fail,
            lambda text: self._notice("disputed", text, (), 0.0),
        )

    def __str__(self) -> str:
        return f"a session on {self.span} of {self.view.model.name}"

    @property
    def reroutes(self) -> int:
        """Changes of a route that ran; of the standby's, none."""
        return self._lane.reroutes

    @property
    def route(self) -> Route | None:
        """The route in use, once there is one."""
        return self._lane.route

    @property
    def standby(self) -> Route | None:
        """The route that stands by, while there is one."""
        return self._spare.route if self._spare is not None and self._spare.running else None

    def _apart(self) -> dict[PeerId, float]:
        apart = apart_from if self._pairing is None else wholly_apart_from
        return apart(self.route, self.view.records)

    @property
    def can_rollback(self) -> bool:
        """Whether the blocks on the route can forget single positions; True as long as there is no route."""
        return all(link.can_rollback for link in self._lane.epochs.links)

    def expect_rollback(self) -> None:
        """Sequences will go back: hops whose blocks keep a running state are to keep what that takes."""
        if self._sequences.rollback:
            return
        self._sequences.rollback = True
        for lane in self._lanes:
            if not all(link.any_length for link in lane.epochs.links):
                lane.epochs.end()

    def length(self, sequence: int) -> int:
        """Positions that the sequence holds."""
        return self._sequences.length(sequence)

    def statistics(self) -> SessionStatistics:
        """How it stands."""
        epochs, sequences = self._lane.epochs, self._sequences
        streams = epochs.streams
        return SessionStatistics(
            epochs=epochs.number,
            reroutes=self.reroutes,
            setbacks=self._lane.blame.setbacks,
            sequences=len(sequences.lengths),
            positions=sequences.positions,
            waiting=len(self._waits),
            codecs=tuple(codec.name for codec in streams.codecs) if streams is not None else (),
            hops=tuple(HopStatistics(link.hop, link.rtt_ms, link.rates) for link in epochs.links),
            standby=self.standby,
            raced=self.raced,
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
        Refuted when outputs given before turn out wrong, SessionClosed.
        """
        needs = self._check(rows, self._sequences.preview(operations))
        self._widen(needs.places)
        self._check_sound()
        self._lane.epochs.admit(needs)
        if self._spare is not None:
            with contextlib.suppress(SwarmError):
                self._spare.epochs.admit(needs)
        if self._sequences.shortens(operations):
            self.expect_rollback()
        self._sequences.operate(operations)
        if self._audits is not None:
            self._audits.outputs.operate(operations)
        self._settle()
        if not self._waits:
            for lane in self._lanes:
                lane.blame.step_begins()
        issued = [self._sequences.append(row) for row in rows]
        self._issue([piece for piece, _ in issued], operations)
        expected = [outputs for _, outputs in issued]
        if not all(outputs.complete for outputs in expected):
            await self._outputs(expected)
        return [self._sequences.hidden(outputs.outputs) for outputs in expected]

    def _planes(self, rows: Sequence[Rows]) -> int:
        """How many places each position has, these included. Raises InvalidInput for other ones than there were."""
        given = {planes_in(row.places, len(row.hidden) // self.row_bytes) for row in rows} | {
            self._sequences.layout.planes
        }
        if len(given - {0, 1}) > 1:
            raise InvalidInput(f"positions of one session have {max(given)} places, or {min(given - {0, 1})}, not both")
        return max(given)

    def _widen(self, planes: int) -> None:
        """Make room for places, where these are the first."""
        if planes and self._pairing is not None:
            raise InvalidInput("compare=2: positions that have places of their own cannot be compared yet")
        if self._sequences.layout.planes < planes:
            self._sequences.widen(planes)
            for lane in self._lanes:
                lane.renew()

    def _check_sound(self) -> None:
        """Raises Refuted where what was given is wrong; else leaves who was found out in the meantime."""
        if self._audits is not None:
            self._audits.check()
        if convicted := self.view.trust.integrity.convicted:
            for lane in self._lanes:
                lane.expel(convicted)

    async def settled(self) -> None:
        """Wait for audits of what was given. Raises Refuted where it is not right."""
        if self._audits is not None and not self._closed:
            await self._audits.settled(self.route)

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
        return Needs.of(after, self._planes(rows), self._sequences.matrices.some)

    def _issue(self, pieces: Sequence[Piece], operations: Sequence[pb.Operation]) -> None:
        epochs = self._lane.epochs
        steps = self._sequences.pack(pieces, epochs.chunk(sum(piece.count for piece in pieces)), epochs.grain)
        if operations:
            first = steps[0] if steps else pb.Step()
            first.operations.extend(operations)
            steps = steps or [first]
        for lane in self._lanes:
            lane.put(steps)
        self._lane.ensure()
        if self.config.race or self._pairing is not None or self._lane.late or not self._lane.running:
            self._race()

    async def _outputs(self, expected: Sequence[Expected]) -> None:
        """Wait for outputs, or the error that ends the waiting."""
        wait = _Wait(expected, asyncio.get_running_loop().create_future())
        self._waits.append(wait)
        self._lane.ensure()
        try:
            await wait.done
        finally:
            self._waits.remove(wait)
            self._sequences.give_up(expected)

    @property
    def _lanes(self) -> tuple[Lane, ...]:
        return (self._lane,) if self._spare is None else (self._lane, self._spare)

    def _race(self) -> None:
        if self._spare is not None:
            self._spare.release()

    # ---- what the lanes say -----------------------------------------------------------------------------------

    def _on_result(self, lane: Lane, step: pb.Step) -> None:
        if self._pairing is not None:
            self._pairing.result(lane, step)
        else:
            self._deliver(lane, step)

    def _deliver(self, lane: Lane, step: pb.Step) -> None:
        if self._sequences.deliver(step):
            self.raced += lane is self._spare
            if self._audits is not None and lane.route is not None:
                self._audits.given(step, lane.route)
            self._settle()
        if lane is self._lane and self._spare is not None and self._pairing is None:
            self._spare.answered(step)

    def _on_slow(self, lane: Lane) -> None:
        """It is later than usual, or broken."""
        if lane is self._lane:
            self._race()

    def _on_began(self, lane: Lane) -> None:
        if self._pairing is not None:
            self._pairing.began(lane)
        elif lane is self._lane and self._spare is not None:
            self._spare.keep_apart()

    def _on_failed(self, lane: Lane, error: BaseException) -> None:
        """A lane cannot go on. That ends the steps under way, unless the other one can."""
        if self._pairing is not None and lane is self._spare:
            self._pairing.alone(error, self.config.max_wait)
        elif lane is self._spare:
            log.info("nothing stands by: %s", error)
            if self._waits:
                self._lane.ensure()
        elif self._spare is not None and self._spare.running and self._pairing is None:
            log.info("only what stood by goes on: %s", error)
            self._race()
        else:
            self._fail(error)

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

    def _notice(self, kind: str, text: str, blocks: tuple[tuple[int, int], ...], seconds: float) -> None:
        log.log(logging.WARNING if kind in ("waiting", "disputed") else logging.INFO, "%s", text)
        self._on_notice(Notice(kind, text, self.route, blocks, seconds))

    async def trace(self) -> list[tuple[Hop, Sequence[pb.Tally]]]:
        """Where the time of this session's steps went, hop by hop; of hops that do not answer, nothing."""

        async def ask(link: HopLink) -> Sequence[pb.Tally]:
            try:
                return await link.trace()
            except SwarmError:
                return ()

        links = self._lane.epochs.links
        told = await asyncio.gather(*(ask(link) for link in links))
        return [(link.hop, tallies) for link, tallies in zip(links, told, strict=True)]

    # ---- the end ----------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Free what the servers hold, at once. A step under way ends with SessionClosed."""
        if self._closed:
            return
        self._closed = True
        self._fail(SessionClosed("the session was closed"))
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        await self._tasks.close()
        self.view.keep()
